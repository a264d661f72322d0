"""Has it converged? R̂ of the parameters, over iterates of one start and over restarts.

A bound whose slope is lost in its noise may stand on parameters that still move. The second half
of the recorded iterates θ_t (`training.trail`) is cut in two, and in eight; a number drifts if

    R̂ > 1.2,    |mean of one half − mean of the other| > 5% of its range over the run,
    and the means of the eight parts rise, or fall, without exception,

the first so that noise about a point is not called drift, the second so that the tail of an
approach without noise is not, the third so that slow wandering about the optimum is not: iterates
of a constant learning rate are as correlated as a slow Markov chain. Weights of network layers
are not settled by the bound (signs, orders, scales of hidden units), and drift on although the
function they compute stands still: they are counted apart, and give no verdict against a fit.

Over restarts whose bounds agree, R̂ of the same numbers tells whether the parameters agree too. If
not, the model has symmetries or several optima: then nothing may be averaged over restarts by name.

References:
    Dhaka et al. (2020). Robust, accurate stochastic optimization for variational inference.
    https://arxiv.org/abs/2009.00666
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.convergence import LARGE, QUESTION, r_hat
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, graded
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.trajectory import Trajectory

LEVEL, MOVED, PARTS = 1.2, 0.05, 8
FEWEST = 80  # records, so that each part has five
LAYERS = (nn.Linear, nn.Bilinear, _ConvNd, _BatchNorm, nn.LayerNorm, nn.RNNBase, nn.Embedding)
SOURCE = f"Dhaka et al. 2020, arXiv:2009.00666; levels: {PROJECT_DEFAULT}"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """Attributes:
    r_hat: parameter's name -> (c,) split R̂ of its recorded numbers over the run's second half.
    moved: parameter's name -> (c,) distance between the two parts' means over the range.
    steady: parameter's name -> (c,) whether the parts' means rise or fall without exception.
    between: parameter's name -> (c,) R̂ over restarts; empty where fewer than two agree in bound.
    layers: names of weights of network layers.
    starts: how many restarts `between` is over.
    """

    r_hat: dict[str, Floats]
    moved: dict[str, Floats]
    steady: dict[str, NDArray[np.bool_]]
    between: dict[str, Floats]
    layers: frozenset[str]
    starts: int

    def drifting(self, name: str) -> float:
        """Share of a parameter's recorded numbers that drift."""
        far = (self.r_hat[name] > LEVEL) & (self.moved[name] > MOVED)
        return float((far & self.steady[name]).mean())

    def findings(self) -> list[Finding]:
        return [self._within_finding()] + ([self._between_finding()] if self.between else [])

    def _within_finding(self) -> Finding:
        own = [n for n in self.r_hat if n not in self.layers]
        each = {n: self.drifting(n) for n in own or self.r_hat}
        sizes = np.array([len(self.r_hat[n]) for n in each])
        share = float(np.array(list(each.values())) @ sizes / sizes.sum())
        verdict = graded(share, 0.1, 0.5)
        worst = max(each, key=lambda n: each[n])
        said = f"Most of all {_short(worst)}: {each[worst]:.0%} of its numbers." if share else ""
        if not own:
            verdict = "good" if verdict == "good" else "unknown"
            said += " All are weights of network layers, which the bound does not settle."
        elif self.layers:
            apart = np.mean([self.drifting(n) for n in sorted(self.layers)])
            said += f" Weights of network layers, not counted: {apart:.0%}."
        return Finding(
            QUESTION,
            "share of parameters' numbers that drift",
            share,
            None,
            f"R̂ > {LEVEL}, steadily and by > {MOVED:.0%} of the way; good ≤ 0.1, bad > 0.5",
            SOURCE,
            verdict,
            said.strip() or "Their means over two parts of the run's second half agree.",
            "Train longer, or with a falling learning rate."
            if verdict in ("warning", "bad")
            else "",
        )

    def _between_finding(self) -> Finding:
        numbers = np.concatenate(list(self.between.values()))
        share = float((numbers > LEVEL).mean())
        same = share <= 0.1
        return Finding(
            QUESTION,
            f"share of parameters' numbers that differ between {self.starts} restarts of one bound",
            share,
            None,
            f"R̂ > {LEVEL}; good ≤ 0.1",
            SOURCE,
            "good" if same else "unknown",
            "Restarts found the same parameters."
            if same
            else "Equal bounds, other parameters: labels, signs or rotations, or several optima.",
            "" if same else "Average nothing over restarts by name; relabel first.",
        )


def drift(
    pair: ModelGuidePair, trails: Sequence[Trajectory], bounds: Sequence[float], chosen: int = 0
) -> Drift:
    """From the records of all starts.

    Args:
        pair: the fitted pair, to tell which parameters belong to layers.
        trails: one a start. bounds: their final bounds, nats per row.
        chosen: which of them is the fit.

    Raises:
        CannotSayError: fewer than 80 records.
    """
    if not trails or not trails[chosen].iterates:
        raise CannotSayError("No iterates were kept (only gradient-based training keeps them).")
    own = {n: t.double().numpy() for n, t in trails[chosen].iterates.items()}
    T = len(next(iter(own.values())))
    if T < FEWEST:
        raise CannotSayError(f"{T} records of the parameters; {FEWEST} are needed.")
    found = {n: _within(x) for n, x in own.items()}
    alike = [
        t.iterates
        for t, b in zip(trails, bounds, strict=True)
        if t.iterates and b > bounds[chosen] - LARGE
    ]
    return Drift(
        {n: f[0] for n, f in found.items()},
        {n: f[1] for n, f in found.items()},
        {n: f[2] for n, f in found.items()},
        _between(alike) if len(alike) > 1 else {},
        frozenset(layer_weights(pair) & own.keys()),
        len(alike),
    )


def _within(x: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """R̂ (c,), relative movement (c,) and steadiness (c,) of iterates (T, c)."""
    late = x[len(x) // 2 :]
    half = len(late) // 2
    distance = np.abs(late[:half].mean(0) - late[-half:].mean(0))
    extent = np.ptp(x, axis=0)
    rise = np.diff(np.stack([part.mean(0) for part in np.array_split(late, PARTS)]), axis=0)
    steady = np.abs(np.sign(rise).sum(0)) == len(rise)
    return r_hat(late[None]), distance / np.where(extent > 0, extent, 1.0), steady


def _between(starts: Sequence[Mapping[str, object]]) -> dict[str, Floats]:
    """R̂ (c,) over starts of the second half of their records, whose scatter is the yardstick."""
    found = {}
    for name in starts[0]:
        each = [np.asarray(s[name], np.float64) for s in starts]
        rows = min(len(x) for x in each) // 2
        late = np.stack([x[-rows:] for x in each])  # (M, T/2, c)
        apart, extent = np.ptp(late.mean(1), axis=0), np.ptp(np.concatenate(each), axis=0)
        # Where there is no noise R̂ sees differences that matter to nobody.
        found[name] = np.where(apart > MOVED * extent, r_hat(late), 1.0)
    return found


def layer_weights(pair: ModelGuidePair) -> set[str]:
    """Names of the leaves that are parameters of torch's own layers."""
    inner = set()
    for owner, module in pair.modules():
        for path, part in module.named_modules():
            if isinstance(part, LAYERS):
                dot = f"{owner}/{path}." if path else f"{owner}/"
                inner |= {dot + name for name, _ in part.named_parameters(recurse=False)}
    return inner


def _short(name: str) -> str:
    return name.partition("/")[2] or name
