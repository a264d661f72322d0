"""Figure of topics: the most likely words."""

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
from ppl_lvm.report.figures.style import COLORS, TEXT, WIDTH, describe, picture_grid, title_above
from ppl_lvm.report.run_figure import run_figure
from ppl_lvm.report.run_view import RunView

MAX_TOPICS, MAX_WORDS, COLUMNS = 20, 6, 5


@run_figure(
    "topics",
    caption="The words of a topic should belong together; two similar topics suggest a split one.",
    alt_text="The most likely words of each topic.",
)
def topics(view: RunView) -> Figure | None:
    """Topics of a model with a table of probabilities (topics, columns of the data).

    The table is `model.topic_words()`, or the posterior mean of a global latent.
    """
    table = table_of(view)
    if table is None or not 2 <= len(table) <= MAX_TOPICS:
        return None
    return draw(table, view.image_shape, view.data.columns, view.batch[0])


def draw(
    table: Tensor,
    image_shape: tuple[int, int] | None = None,
    words: Sequence[str] | None = None,
    counts: Tensor | None = None,
) -> Figure:
    """Topics (K, V) as pictures, or as bars of their most likely words.

    With `counts` (N, V), titles show the coherence of the displayed words.
    """
    K, V = table.shape
    if image_shape is not None:
        rows = -(-K // COLUMNS)
        ends = [(COLUMNS * r, min(COLUMNS * (r + 1), K) - 1) for r in range(rows)]
        names = [f"{first}–{last}" if first < last else f"{first}" for first, last in ends]
        shown = table.reshape(K, *image_shape).cpu().numpy()
        return picture_grid("Topics: word probabilities", shown, rows, min(K, COLUMNS), names)
    labels = [str(v) for v in range(V)] if words is None else list(words)
    figure = Figure(figsize=(WIDTH, 0.6 + 1.25 * -(-K // 2)), layout="constrained")
    title_above(figure, "Topics: most likely words and their probability")
    grid = figure.subplots(-(-K // 2), 2, squeeze=False, sharex=True).ravel()
    best = top_words(table, min(MAX_WORDS, V))
    coherences = None if counts is None else coherence(table, counts, best.shape[1])
    for k, axes in enumerate(grid):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=TEXT - 3)
        if k >= K:
            axes.set_axis_off()
            continue
        at = range(best.shape[1])
        axes.barh(at, table[k, best[k]].cpu().numpy(), color=COLORS[0])
        axes.set_yticks(at, [labels[v] for v in best[k].tolist()])
        axes.invert_yaxis()
        suffix = "" if coherences is None else f", coherence {coherences[k].item():.2f}"
        axes.set_title(f"topic {k}{suffix}", fontsize=TEXT - 2, loc="left")
        axes.tick_params(labelbottom=True)  # the scale is shared
    parts = (f"{k}: {', '.join(labels[v] for v in best[k].tolist()[:3])}" for k in range(K))
    return describe(figure, f"Topics {'; '.join(parts)}.")


def table_of(view: RunView) -> Tensor | None:
    """Probabilities (topics, columns) of the words of each topic; None for other models."""
    x = view.batch[0]
    if x.dim() != 2:
        return None
    topic_words = getattr(view.run.model, "topic_words", None)
    if callable(topic_words):
        table = topic_words()
    else:
        names = [n for n, v in view.shared.items() if _is_table(view, n, v, x.shape[1])]
        if len(names) != 1:
            return None
        with torch.no_grad(), preserve_rng(), view.pair.scope(), poutine.block():
            table = predict.center_of_globals(view.pair, view.batch)[names[0]]
    is_table = isinstance(table, Tensor) and table.dim() == 2 and table.shape[1] == x.shape[1]
    return table.detach() if is_table else None


def _is_table(view: RunView, name: str, value: Tensor, columns: int) -> bool:
    support = view.trace.nodes[name]["fn"].support if name in view.trace.nodes else None
    support = unwrap_support(support)
    return value.dim() == 2 and value.shape[1] == columns and support is constraints.simplex
