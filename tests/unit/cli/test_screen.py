"""What the user sees is what the data says, brackets and all."""

import pytest

from txpert_dist.cli import screen


def test_brackets_in_names_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    screen.output.print(screen.table("genes", ["name"], [["HLA[A]"], ["[bold]x"]]))
    shown = capsys.readouterr().out
    assert "HLA[A]" in shown
    assert "[bold]x" in shown


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_error("first\nsecond\tthird")
    assert capsys.readouterr().err == "error: first second third\n"


def test_progress_without_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.progress() as show:
        for done in range(101):
            show("cells", done, 100)
        show("epoch 1 of 2: validation Pearson delta 0.5", 0, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["cells: 0 of 100", "cells: 100 of 100", "epoch 1 of 2: validation Pearson delta 0.5"]
