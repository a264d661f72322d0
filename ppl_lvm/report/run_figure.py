"""Declaration of run figures: slug, caption, alternative text."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from ppl_lvm.report.figures.style import description


@dataclass(frozen=True)
class Picture:
    """A figure in a report.

    Attributes:
        title: heading.
        figure: the figure.
        caption: one sentence on how to read it.
        alt_text: description of what it shows.
    """

    title: str
    figure: Figure
    caption: str
    alt_text: str

    @cached_property
    def source(self) -> str:
        """The figure as the source of an image: base64-encoded SVG."""
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "ppl_lvm"}):  # deterministic bytes
            self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class RunFigure:
    """A function from a `RunView` to a figure, None where it does not apply to the model.

    Attributes:
        slug: name of the file, and of the heading with spaces.
        caption: one sentence on how to read it.
        alt_text: description of what it shows, where the function stores no finding.
        draw: the function.
        needs_log_p: True if it also takes log p(x) (N,) of the rows, which a diagnosis has.
    """

    slug: str
    caption: str
    alt_text: str
    draw: Callable[..., Figure | None]
    needs_log_p: bool = False

    def __call__(self, *arguments: Any) -> Figure | None:
        """Draw the figure."""
        return self.draw(*arguments)

    def picture(self, figure: Figure) -> Picture:
        """`figure` for a report; its title becomes a part of the alternative text."""
        title = figure.get_suptitle().replace("\n", " ")
        heading = self.slug.replace("_", " ").capitalize()
        finding, caption = description(figure)
        text = f"{title}. {finding or self.alt_text}"
        return Picture(heading, figure, caption or self.caption, text)


def run_figure(
    slug: str, *, caption: str, alt_text: str, needs_log_p: bool = False
) -> Callable[[Callable[..., Figure | None]], RunFigure]:
    """Declare a function to be a figure of runs."""
    return lambda draw: RunFigure(slug, caption, alt_text, draw, needs_log_p)
