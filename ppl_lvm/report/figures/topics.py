"""The picture of topics: the words, or pixels, that each makes likely."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ppl_lvm.core.distributions import unwrap_support
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.posterior import predict
from ppl_lvm.posterior.topics import coherence, top_words
from ppl_lvm.report.figures.style import COLORS, TEXT, WIDTH, picture_grid, title_above
from ppl_lvm.report.run_figure import run_figure
from ppl_lvm.report.run_view import RunView

MOST_TOPICS, MOST_WORDS, ACROSS = 20, 6, 5


@run_figure(
    "topics",
    caption="The words of a topic should belong together; two similar topics suggest a split one.",
    alt_text="The most likely words of each topic.",
)
def topics(subject: RunView) -> Figure | None:
    """Of a model with a table of probabilities, a row a topic, a column a column of the data.

    The table is what `model.topic_words()` gives, or the mean of a latent that all rows share.
    """
    table = _table(subject)
    if table is None or not 2 <= len(table) <= MOST_TOPICS:
        return None
    return draw(table, subject.image_shape, subject.data.columns, subject.batch[0])


def draw(
    table: Tensor,
    image_shape: tuple[int, int] | None = None,
    words: Sequence[str] | None = None,
    counts: Tensor | None = None,
) -> Figure:
    """Topics (K, V) as pictures, or as bars of their most likely words.

    With `counts` (N, V) each bears its coherence in them, that of the words that are shown.
    """
    K, V = table.shape
    if image_shape is not None:
        rows = -(-K // ACROSS)
        ends = [(ACROSS * r, min(ACROSS * (r + 1), K) - 1) for r in range(rows)]
        names = [f"{first}–{last}" if first < last else f"{first}" for first, last in ends]
        shown = table.reshape(K, *image_shape).cpu().numpy()
        return picture_grid("Topics: where each has its words", shown, rows, min(K, ACROSS), names)
    called = [str(v) for v in range(V)] if words is None else list(words)
    figure = Figure(figsize=(WIDTH, 0.6 + 1.25 * -(-K // 2)), layout="constrained")
    title_above(figure, "Topics: the most likely words of each, and their probability")
    grid = figure.subplots(-(-K // 2), 2, squeeze=False).ravel()
    best = top_words(table, min(MOST_WORDS, V))
    belongs = None if counts is None else coherence(table, counts, best.shape[1])
    for k, axes in enumerate(grid):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=TEXT - 3)
        if k >= K:
            axes.set_axis_off()
            continue
        at = range(best.shape[1])
        axes.barh(at, table[k, best[k]].cpu().numpy(), color=COLORS[0])
        axes.set_yticks(at, [called[v] for v in best[k].tolist()])
        axes.invert_yaxis()
        said = "" if belongs is None else f", coherence {belongs[k].item():.2f}"
        axes.set_title(f"topic {k}{said}", fontsize=TEXT - 2, loc="left")
    return figure


def _table(subject: RunView) -> Tensor | None:
    x = subject.batch[0]
    if x.dim() != 2:
        return None
    own = getattr(subject.run.model, "topic_words", None)
    if callable(own):
        found = own()
    else:
        names = [n for n, v in subject.shared.items() if _is_table(subject, n, v, x.shape[1])]
        if len(names) != 1:
            return None
        with torch.no_grad(), preserve_rng(), subject.pair.scope(), poutine.block():
            found = predict.center_of_globals(subject.pair, subject.batch)[names[0]]
    good = isinstance(found, Tensor) and found.dim() == 2 and found.shape[1] == x.shape[1]
    return found.detach() if good else None


def _is_table(subject: RunView, name: str, value: Tensor, columns: int) -> bool:
    support = subject.trace.nodes[name]["fn"].support if name in subject.trace.nodes else None
    support = unwrap_support(support)
    return value.dim() == 2 and value.shape[1] == columns and support is constraints.simplex
