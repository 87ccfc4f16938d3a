"""What a study shows while it runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txpert_dist.cli.tune import _SHOWN, _latest, _on_lines, _table
from txpert_dist.train.tune_study import Trial

ENDINGS = st.sampled_from(["running", "complete", "stopped", "failed"])


@given(st.lists(st.tuples(ENDINGS, st.floats(-1, 1)), max_size=60))
def test_the_table_fits_a_screen_and_has_what_matters(drawn):
    trials = [Trial(number, {}, ending, {1: score}) for number, (ending, score) in enumerate(drawn)]
    shown = _latest(trials)
    numbers = [trial.number for trial in shown]
    assert numbers == sorted(set(numbers))
    assert len(shown) == min(len(trials), _SHOWN)
    running = [trial for trial in trials if trial.ending == "running"]
    assert len(running) > _SHOWN or all(trial in shown for trial in running)
    complete = [trial for trial in trials if trial.ending == "complete"]
    if complete and len(running) < _SHOWN:
        assert any(
            trial.ending == "complete" and trial.best == max(t.best for t in complete) for trial in shown
        )
    assert _table("trials", shown).row_count == len(shown)


def test_without_a_terminal_every_change_is_one_line(capsys: pytest.CaptureFixture[str]):
    show = _on_lines()
    first = Trial(0, {}, "running", {})
    show([first])
    show([first])
    show([first._replace(scores={1: 0.25}), Trial(1, {}, "failed", {}, "the loss is nan")])
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "trial 0: running, epoch 0, best undefined",
        "trial 0: running, epoch 1, best 0.2500",
        "trial 1: failed, epoch 0, best undefined: the loss is nan",
    ]
