"""Cached quantities of a run for its figures."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from pyro import poutine
from torch import Tensor

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Array
from ppl_lvm.data import Data
from ppl_lvm.posterior import predict
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.traces import latent_sites

if TYPE_CHECKING:
    from ppl_lvm.runs.run import Run


@dataclass(frozen=True)
class RunView:
    """A fitted run and the rows to draw.

    Attributes:
        run: the run.
        data: the data of the rows, with column names, labels and image shape.
        batch: the rows, as arguments of the model.
    """

    run: "Run"
    data: Data
    batch: tuple[Tensor, ...]

    @property
    def pair(self) -> ModelGuidePair:
        return self.run.pair

    @cached_property
    def trace(self) -> poutine.Trace:
        """Trace of the model on these rows."""
        with torch.no_grad(), preserve_rng(), self.pair.scope(), poutine.block():
            return poutine.trace(self.pair.model).get_trace(*self.batch)

    @cached_property
    def values(self) -> dict[str, Tensor]:
        """Observed site -> its value."""
        return predict.observed_values(self.trace)

    @cached_property
    def rows(self) -> str | None:
        """Observed site whose value is the batch's rows, if any."""
        x = self.batch[0]
        if not isinstance(x, Tensor) or x.dim() != 2:
            return None
        observed = ~x.isnan()
        equal = [
            name
            for name, value in self.values.items()
            if value.shape == x.shape and torch.equal(value[observed].to(x.dtype), x[observed])
        ]
        return equal[0] if equal else None

    @cached_property
    def x(self) -> Array:
        """Rows (N, P)."""
        x: Array = self.batch[0].cpu().numpy()
        return x

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(H, W) if the rows of the first tensor are pictures."""
        shape, x = self.data.image_shape, self.batch[0]
        return shape if shape is not None and x.shape[1:] == (math.prod(shape),) else None

    @cached_property
    def summed(self) -> frozenset[str]:
        return predict.summed_sites(self.pair, *self.batch)

    @cached_property
    def codes(self) -> dict[str, Tensor]:
        """Local latent -> its posterior mean for each row, or probabilities of its states."""
        return predict.encode(self.pair, *self.batch)

    @cached_property
    def classes(self) -> dict[str, Tensor]:
        """Local latent with K states -> their probabilities (N, K)."""
        return {n: c for n, c in self.codes.items() if self._has_states(n) and c.dim() == 2}

    @cached_property
    def continuous(self) -> dict[str, Tensor]:
        """Local latent vector -> its posterior mean (N, D)."""
        return {n: c for n, c in self.codes.items() if not self._has_states(n) and c.dim() == 2}

    @cached_property
    def decoded(self) -> dict[str, Tensor]:
        """Observed site -> its mean at the codes, with the jointly most likely states."""
        if not self.codes:
            return {}
        states = {n: c.argmax(-1) if self._has_states(n) else c for n, c in self.codes.items()}
        states |= predict.most_likely_states(self.pair, states, *self.batch)
        return predict.decode(self.pair, states, *self.batch)

    @cached_property
    def shared(self) -> dict[str, Tensor]:
        """One sample of the global latents of the guide."""
        with torch.no_grad(), preserve_rng(), self.pair.scope(), poutine.block():
            return predict.draw_guide(self.pair, self.batch)[1]

    @cached_property
    def chain(self) -> list[str]:
        """Names of three or more local latents, as wide as a row, in sampling order; else empty."""
        order = [n for n in latent_sites(self.trace) if n in self.continuous]
        wide = [n for n in order if self.continuous[n].shape == self.batch[0].shape]
        return order if len(wide) == len(order) > 2 and self.rows is not None else []

    @cached_property
    def labels(self) -> Array | None:
        """Labels hidden from the model, else its label argument (-1: no label)."""
        if self.data.labels is not None:
            labels: Array = self.data.labels[: len(self.batch[0])].cpu().numpy()
            return labels
        index = self.label_tensor
        return None if index is None else self.batch[index].long().cpu().numpy()

    @cached_property
    def label_tensor(self) -> int | None:
        """Index of the label tensor in the batch, None without labels.

        Labels are integers from -1 to K - 1, one per row, for a model with one class of K states.
        """
        if len(self.classes) != 1:
            return None
        K = next(iter(self.classes.values())).shape[-1]
        for index, t in enumerate(self.batch[1:], 1):
            if t.shape == (len(self.batch[0]),) and bool(((t == t.round()) & (t >= -1)).all()):
                return index if bool((t < K).all()) else None
        return None

    def numbers(self, mean: Tensor) -> Array:
        """Mean of the rows as an array (N, P); categories (N, P, C) become mean levels."""
        if mean.dim() == 3:
            mean = (mean * torch.arange(mean.shape[-1], device=mean.device)).sum(-1)
        array: Array = mean.cpu().numpy()
        return array

    def repeated(self, count: int) -> tuple[Tensor, ...]:
        """`count` rows, repeated cyclically, as arguments for decoding other codes."""
        index = torch.arange(count) % len(self.batch[0])
        return tuple(t[index] for t in self.batch)

    def still(self, count: int) -> dict[str, Tensor]:
        """Mean codes and most likely classes, repeated `count` times."""
        centers = {n: c.mean(0) for n, c in self.codes.items()}
        centers |= {n: centers[n].argmax(-1) for n in centers if self._has_states(n)}
        return {n: c.expand(count, *c.shape) for n, c in centers.items()}

    def _has_states(self, name: str) -> bool:
        if name not in self.trace.nodes:
            return False
        fn = self.trace.nodes[name]["fn"]
        return bool(fn.has_enumerate_support and not fn.event_shape)
