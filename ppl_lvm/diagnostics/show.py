"""How far a diagnosis has come: a bar on a terminal, plain lines elsewhere, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def progress(shown: bool = True) -> Iterator[Callable[[str, int, int], None] | None]:
    """What `diagnose` takes as `say`; None where nothing is to be shown."""
    console = Console(stderr=True)
    if not shown:
        yield None
        return
    if not console.is_terminal:
        yield lambda name, done, total: console.print(
            f"diagnose {done}/{total} {name}".rstrip(), highlight=False, soft_wrap=True
        )
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("diagnose", total=None)
        yield lambda name, done, total: bar.update(
            task, description=f"diagnose: {name}", completed=done, total=total
        )
