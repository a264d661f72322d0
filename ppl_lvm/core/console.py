"""Progress bars and plain text on standard error."""

import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from ppl_lvm.core import distributed
from ppl_lvm.core.messages import for_caller

LINE_SECONDS = 10.0
WIDTH = 80
UNWRAPPED = 10_000  # of text for a pipe
NARROW, SHORT = 70, 50  # below, tables stack and the bar is dropped; the rate is dropped


class Progress:
    """Progress of a fit: bound and validation bound (nats per row), steps/s, time left.

    Args:
        total: steps in all.
        done: steps already taken when a run resumes.
        title: what is running, "restart 2 of 5".
        figure: label of the number shown.
        shown: False shows no bar and no steps.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        title: str = "",
        figure: str = "bound",
        shown: bool = True,
    ) -> None:
        self.total, self.done, self.title, self.shown = total, done, title, shown
        self.figure = figure
        self._console = Console(stderr=True)
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        self._start = self._printed = time.monotonic()
        self._first = self.done
        if self.shown and self._console.is_terminal:
            columns: list[ProgressColumn] = [
                TextColumn("{task.description}"),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
            ]
            if self._console.width >= NARROW:
                columns.insert(1, BarColumn(bar_width=None))
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(
                self.title or "fit", total=self.total, completed=self.done, figures=""
            )
            self._bar.start()
            self._logs = _redirect_log_handlers()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            for handler, stream in self._logs:
                handler.setStream(stream)
            self._bar.stop()

    def advance(self, step: int, bound: float, validation: Sequence[float]) -> None:
        """Report that `step` steps are done, with the last bound."""
        if not self.shown:
            return
        now = time.monotonic()
        if self._bar is not None:
            if now - self._printed > 0.1 or step == self.total:
                self._printed = now
                figures = self._figures(step, bound, validation, now)
                self._bar.update(self._task, completed=step, figures=figures)
        elif now - self._printed > LINE_SECONDS or step == self.total:
            self._printed = now
            left = (self.total - step) * (now - self._start) / max(step - self._first, 1)
            title = f"{self.title}: " if self.title else ""
            figures = self._figures(step, bound, validation, now)
            self._console.print(
                f"{title}step {step}/{self.total}  {figures}  {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )

    def say(self, line: str) -> None:
        """Print a line beside the bar, also where no bar is shown: it may be a warning."""
        if distributed.rank() == 0:
            title = f"{self.title}: " if self.title else ""
            line = for_caller(line)
            self._console.print(f"{title}{line}", highlight=False, markup=False, soft_wrap=True)

    def _figures(self, step: int, bound: float, validation: Sequence[float], now: float) -> str:
        rate = (step - self._first) / max(now - self._start, 1e-9)
        held_out = f"  held out {validation[-1]:.4f}" if validation else ""
        speed = "" if self._is_short() else f"  {rate:.0f} steps/s"
        return f"{self.figure} {bound:.4f}{held_out}{speed}"

    def _is_short(self) -> bool:
        """True where the line has no room for the rate."""
        return self._bar is not None and self._console.width < SHORT


def _redirect_log_handlers() -> list[tuple[logging.StreamHandler[Any], Any]]:
    """Send handlers that write to the terminal through the open bar; returns what to restore.

    A line that is written past the bar breaks it: handlers keep the stream that they were made
    with, so that replacing `sys.stderr` does not reach them.
    """
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    terminal = (sys.__stdout__, sys.__stderr__)
    redirected = []
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream in terminal:
                redirected.append((handler, handler.setStream(sys.stderr)))
    return redirected


class Records:
    """Rows of a table; where the terminal is narrow, one block of lines each.

    Args:
        heads: headings; the first column names the row.
        rows: cells.
        right: headings of the columns with numbers.
    """

    def __init__(
        self, heads: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()
    ) -> None:
        self.heads, self.rows, self.right = heads, rows, right

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width < NARROW:
            for row in self.rows:
                yield Text(row[0], style="bold", overflow="fold")
                for head, cell in zip(self.heads[1:], row[1:], strict=True):
                    if cell:
                        line = Text(f"{head}: {cell}" if head else cell, overflow="fold")
                        yield Padding(line, (0, 0, 0, 2))
            return
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=any(self.heads))
        for head in self.heads:
            wrapping: Any = {"overflow": "fold"} if head == self.heads[0] else {"no_wrap": True}
            table.add_column(head, justify="right" if head in self.right else "left", **wrapping)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        yield table


def plain_text(shown: RenderableType, width: int = WIDTH) -> str:
    """Text 80 characters wide, or of another width, without colors or trailing spaces."""
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


@contextmanager
def progress(
    what: str = "diagnose", shown: bool = True
) -> Iterator[Callable[[str, int, int], None] | None]:
    """Progress callback for `say=`; None if nothing is to be shown."""
    console = Console(stderr=True)
    if not shown:
        yield None
        return
    if not console.is_terminal:
        yield lambda name, done, total: console.print(
            f"{what} {done}/{total} {name}".rstrip(), highlight=False, soft_wrap=True
        )
        return
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    if console.width >= NARROW:
        columns.insert(1, BarColumn(bar_width=None))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda name, done, total: bar.update(
            task, description=f"{what}: {name}", completed=done, total=total
        )
