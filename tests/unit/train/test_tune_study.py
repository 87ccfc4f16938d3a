"""What a study keeps on disk, and which trials go on."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler

from tests.unit.train.small_screen import configuration, write_inputs
from txpert_dist.errors import CheckpointError, ConfigError
from txpert_dist.train.tune_book import Book, check_inputs
from txpert_dist.train.tune_ray import Asha
from txpert_dist.train.tune_space import space_of
from txpert_dist.train.tune_study import (
    SCORES,
    Trial,
    add_score,
    best_so_far,
    check_study,
    read_scores,
    read_trials,
    study_config,
    trial_name,
    write_trial,
)

SPACE = {"model.latent": {"choice": [4, 8, 16]}, "model.dropout": {"uniform": [0.0, 0.5]}}
SCORE = st.one_of(st.floats(-1, 1), st.just(math.nan))


@given(st.dictionaries(st.integers(1, 30), SCORE, max_size=10), st.data())
def test_scores_come_back_whatever_the_last_line_was_cut_at(tmp_path_factory, scores, data):
    folder = tmp_path_factory.mktemp("trial")
    for epoch, score in scores.items():
        add_score(folder, epoch, score)
        add_score(folder, epoch, 7.0)  # done again after a kill: the first stays
    found = read_scores(folder)
    assert found.keys() == scores.keys()
    assert all(found[e] == scores[e] or (math.isnan(found[e]) and math.isnan(scores[e])) for e in scores)
    if scores:
        content = (folder / SCORES).read_bytes()
        last = content.rstrip(b"\n").rfind(b"\n") + 1
        (folder / SCORES).write_bytes(content[: data.draw(st.integers(last, len(content) - 1))])
        add_score(folder, 99, 0.5)
        found = read_scores(folder)
        assert found[99] == 0.5
        assert list(found)[:-1] in (list(scores)[:-1], list(scores))


@given(st.dictionaries(st.integers(1, 30), SCORE, max_size=10))
def test_the_best_so_far_is_numpys(scores):
    epochs = sorted(scores)
    running = np.fmax.accumulate([scores[epoch] for epoch in epochs]) if epochs else []
    expected = {e: float(s) for e, s in zip(epochs, running, strict=True) if not math.isnan(s)}
    assert best_so_far(scores) == expected


def test_trials_come_back(tmp_path):
    trial = Trial(3, {"model.latent": 8, "graph.use": ["a"]}, "failed", {}, "the loss is nan")
    write_trial(tmp_path, trial)
    add_score(tmp_path / trial_name(3), 1, 0.25)
    assert read_trials(tmp_path) == [trial._replace(scores={1: 0.25})]
    (tmp_path / trial_name(3) / "trial.json").write_text('{"number": 3')
    with pytest.raises(CheckpointError, match=r"trial\.json: cannot be read"):
        read_trials(tmp_path)


def test_a_study_s_folder_is_of_one_base_and_space(tmp_path):
    base = configuration(tmp_path, tmp_path)
    check_study(tmp_path, base, SPACE)
    check_study(tmp_path, base, SPACE)
    elsewhere = configuration(tmp_path, tmp_path / "other", cluster={"num_workers": 4})
    check_study(tmp_path, elsewhere, SPACE)
    with pytest.raises(ConfigError, match=r"other values of train\.epochs \(2 -> 3\); choose another name="):
        check_study(tmp_path, configuration(tmp_path, tmp_path, train={"epochs": 3}), SPACE)
    with pytest.raises(ConfigError, match="another search space"):
        check_study(tmp_path, base, {"model.latent": {"choice": [4, 8]}})
    (tmp_path / "study.yaml").write_text("run: 3")
    with pytest.raises(ConfigError, match="or is damaged"):
        check_study(tmp_path, base, SPACE)


def book_of(folder, target=4):
    base = configuration(folder, folder / "runs")
    return Book(base, study_config(base), space_of(SPACE, base, where=""), target=target, show=lambda _: None)


def test_the_book_goes_on_where_it_was(tmp_path):
    book = book_of(tmp_path)
    handed = [book.next() for _ in range(3)]
    assert [number for number, _ in handed] == [0, 1, 2]
    assert handed[0][1].model == book.base.model
    assert handed[1][1].name == trial_name(1)
    assert handed[1][1].run_folder == book.folder / trial_name(1)
    assert handed[1][1].tracking_uri == book.base.tracking_uri
    for epoch, score in ((1, 0.1), (2, 0.3)):
        add_score(book.folder / trial_name(0), epoch, score)
    book.ended(0, "complete")
    book.ended(1, "failed", "the loss is nan")
    assert book.remaining == 2

    again = book_of(tmp_path)  # after a kill: trial 2 was running, trial 1 is tried again
    assert again.remaining == 3
    assert [trial.values for trial in again.trials] == [trial.values for trial in book.trials]
    assert [again.next(), again.next()] == handed[1:]
    assert again.next()[0] == 3
    assert again.next() is None
    again.ended(1, "complete")
    assert again.winner() == again.trials[0]
    assert again.winner().best == 0.3


def test_nothing_is_tried_when_the_base_cannot_be_trained(tmp_path):
    book = book_of(tmp_path)
    book.next()
    book.ended(0, "failed", "no")
    assert book.hopeless
    assert book.next() is None
    assert book.winner() is None
    assert not book_of(tmp_path).hopeless  # what was wrong may have been mended


def test_a_choice_of_graphs_that_is_not_there_is_said_before_anything_starts(tmp_path):
    inputs = write_inputs(tmp_path / "inputs")
    base = configuration(inputs, tmp_path / "runs")
    for use, fine in (([["curated"], ["curated", "screen"]], True), ([["curated"], ["strin"]], False)):
        space = space_of({"graph.use": {"choice": use}}, base, where="")
        if fine:
            check_inputs(study_config(base), space)
        else:
            with pytest.raises(ConfigError, match="strin"):
                check_inputs(study_config(base), space)
    assert not (tmp_path / "runs").exists()


REPORTS = st.lists(st.tuples(st.integers(1, 5), st.floats(-1, 1)), max_size=60)


@given(st.integers(1, 30), REPORTS)
def test_halving_is_tunes_own_and_can_be_replayed(epochs, reports):
    """Decisions equal those of Tune's scheduler, but for trial 0; a replay knows the same rungs."""
    asha = Asha(epochs)
    first = max(1, round(epochs / 9))
    oracle = AsyncHyperBandScheduler(
        time_attr="t", metric="m", mode="max", max_t=epochs, grace_period=first, reduction_factor=3,
        stop_last_trials=False,
    )  # fmt: skip
    scores, stopped = {}, set()
    for number, score in reports:
        epoch = max(scores.get(number, {0: 0})) + 1
        if number in stopped or epoch > epochs:
            continue
        trial = SimpleNamespace(trial_id=f"t{number}")
        if number not in scores:
            oracle.on_trial_add(None, trial)
        scores.setdefault(number, {})[epoch] = score
        best = best_so_far(scores[number])[epoch]
        action = oracle.on_trial_result(None, trial, {"t": epoch, "m": best})
        goes_on = asha.goes_on(number, epoch, best)
        assert goes_on == (action == "CONTINUE" or epoch == epochs)
        if not goes_on:
            stopped.add(number)
    trials = [
        Trial(number, {}, "stopped" if number in stopped else "complete", own)
        for number, own in scores.items()
    ]
    restored = Asha(epochs)
    assert restored.replay(trials) == []
    for epoch in range(1, epochs + 1):
        assert restored.goes_on(9, epoch, 0.1) == asha.goes_on(9, epoch, 0.1)


def test_the_default_is_never_stopped():
    asha = Asha(9)
    for number in range(1, 6):
        for epoch in range(1, 10):
            asha.goes_on(number, epoch, 0.5)
    assert all(asha.goes_on(0, epoch, -0.9) for epoch in range(1, 10))
    assert not all(asha.goes_on(7, epoch, -0.9) for epoch in range(1, 10))


def test_an_unfinished_trial_that_fell_behind_is_not_taken_up_again():
    good = [Trial(number, {}, "complete", dict.fromkeys(range(1, 10), 0.5)) for number in (1, 2, 3)]
    poor = Trial(4, {}, "running", {1: -0.5})
    new = Trial(5, {}, "running", {})
    assert Asha(9).replay([*good, poor, new]) == [4]


def test_trials_are_text(tmp_path):
    write_trial(tmp_path, Trial(0, {"model.dropout": 0.25}, "running", {}))
    tree = json.loads((tmp_path / trial_name(0) / "trial.json").read_text())
    assert tree == {"number": 0, "values": {"model.dropout": 0.25}, "ending": "running", "message": ""}
