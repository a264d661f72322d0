"""What rich shows on a terminal, as text: for `print`, a notebook or a file."""

from rich.console import Console, RenderableType

WIDTH = 80


def plain_text(shown: RenderableType) -> str:
    """80 characters wide, without colours, and without spaces at the ends of lines."""
    console = Console(width=WIDTH, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
