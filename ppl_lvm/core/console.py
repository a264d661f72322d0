"""Progress bars and plain text on standard error."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from ppl_lvm.core import distributed

LINE_SECONDS = 10.0
WIDTH = 80


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
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(
                self.title or "fit", total=self.total, completed=self.done, figures=""
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
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
            self._console.print(f"{title}{line}", highlight=False, markup=False, soft_wrap=True)

    def _figures(self, step: int, bound: float, validation: Sequence[float], now: float) -> str:
        rate = (step - self._first) / max(now - self._start, 1e-9)
        held_out = f"  held out {validation[-1]:.4f}" if validation else ""
        return f"{self.figure} {bound:.4f}{held_out}  {rate:.0f} steps/s"


def plain_text(shown: RenderableType) -> str:
    """Text 80 characters wide, without colors or trailing spaces."""
    console = Console(width=WIDTH, no_color=True, highlight=False)
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
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda name, done, total: bar.update(
            task, description=f"{what}: {name}", completed=done, total=total
        )
