"""What the user sees: progress, tables and one-line errors. Everything but results goes to stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

PLAIN_WIDTH = 132
"""Columns of tables when the output is no terminal, so that a log does not cut them."""

# No markup: names from files may hold brackets.
console = Console(stderr=True, highlight=False, markup=False)
output = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)

PLAIN_INTERVAL_S = 5.0
"""Without a terminal: seconds between two lines of the same stage."""

ProgressCallback = Callable[[str, int, int], None]
"""(what, done, total): a stage's name and how far it is; a total of 0 is news that gets a line of its own."""


def say(text: str) -> None:
    """One line of result on stdout, never wrapped."""
    output.print(text, soft_wrap=True)


def print_error(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")


@contextmanager
def progress() -> Iterator[ProgressCallback]:
    """A bar for each stage on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        with _bars() as bars:
            yield _on_bars(bars)
    else:
        yield _on_lines()


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _on_bars(bars: Progress) -> ProgressCallback:
    tasks = {task.description: task.id for task in bars.tasks}

    def show(what: str, done: int, total: int) -> None:
        if total == 0:
            console.print(what)
            return
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    return show


def _on_lines() -> ProgressCallback:
    last: dict[str, float] = {}

    def show(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if total == 0:
            console.print(what, soft_wrap=True)
        elif done >= total or now - last.get(what, -PLAIN_INTERVAL_S) >= PLAIN_INTERVAL_S:
            last[what] = now
            console.print(f"{what}: {done:,} of {total:,}")

    return show


def table(title: str, columns: list[str], rows: list[list[str]], *, texts: int = 1) -> Table:
    """A table whose first ``texts`` columns are left-aligned and whose others, numbers, right-aligned."""
    drawn = Table(title=title, title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        drawn.add_column(column, justify="left" if number < texts else "right")
    for row in rows:
        drawn.add_row(*row)
    return drawn
