"""Hidden Markov model: a state that moves in steps, seen through noise, N sequences of T steps.

    z_n1 ~ Categorical(π)                   latent    (N,)
    z_nt ~ Categorical(A_{z_n,t-1})         latent    (N, T), summed out
    x_nt ~ p(x | z_nt)                      observed  (N, T, P)

with p one of

    gaussian       x_ntp ~ N(μ_{z,p}, σ²_{z,p}),  σ² = s² + floor
    categorical    x_ntp ~ Categorical(θ_{z,p}),  x in {0, …, C - 1}

columns independent given the state. π, A and the rest are parameters, to be found by maximum
likelihood, so that the bound is log p(x) itself; the guide is empty. The chain is summed out by
`pyro.distributions.DiscreteHMM` in log₂ T rounds of products of S × S matrices: N T S³ operations,
few of them in sequence. `log_evidence`, `marginals` and `viterbi` walk along the chain, N T S².

A missing value is NaN and is left out of the likelihood, exactly. A short sequence is filled up
with NaN at its end: what is never seen changes nothing.

References:
    Rabiner (1989). A tutorial on hidden Markov models.
    Särkkä, García-Fernández (2021). Temporal parallelization of Bayesian smoothers.
    https://arxiv.org/abs/1905.13002
"""

from typing import Any

import pyro
import torch
from pyro.distributions import Categorical, DiscreteHMM, Normal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from ppl_lvm.models.gmm import start_clusters
from ppl_lvm.models.rows import filled

EMISSIONS = ("gaussian", "categorical")


class HiddenMarkovModel(PyroModule):
    """S states behind sequences of P columns, by maximum likelihood.

    Args:
        states: S.
        observed: P. If None, it is taken from the first data seen, or from a loaded state.
        emission: one of `EMISSIONS`.
        categories: C, for `emission="categorical"` only.
        floor: the least variance of a Gaussian emission, in squared units of the data.
    """

    start: Tensor  # π (S,)
    transition: Tensor  # A (S, S), from row to column
    means: Tensor  # μ (S, P)
    scale: Tensor  # s (S, P)
    table: Tensor  # θ (S, P, C)

    def __init__(
        self,
        states: int = 3,
        observed: int | None = None,
        emission: str = "gaussian",
        categories: int | None = None,
        floor: float = 1e-6,
    ) -> None:
        super().__init__()
        if emission not in EMISSIONS:
            raise ValueError(
                f"There is no emission {emission!r}; choose from {', '.join(EMISSIONS)}."
            )
        if (emission == "categorical") != (categories is not None):
            raise ValueError(
                "emission='categorical' needs categories=C, how many values a column takes; "
                f"'gaussian' takes none. Got {emission!r}, categories={categories}."
            )
        if states < 1 or not floor > 0:
            raise ValueError(
                f"A chain needs at least one state and a floor above zero; got states={states}, "
                f"floor={floor}."
            )
        self.states = states
        self.emission = emission
        self.categories = categories
        self.floor = floor
        self.observed: int | None = None
        if observed is not None:
            self._resize(observed)

    def forward(self, x: Tensor) -> None:
        """Sequences `x` (N, T, P), or (N, T) if P = 1; NaN where there is none."""
        self._meet(x)
        x = x if x.dim() == 3 else x.unsqueeze(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self._chain(~x.isnan()), obs=x.nan_to_num(0.0))

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_n) by the forward algorithm, in nats: (N,)."""
        return self._filter(self._log_emission(x))[:, -1].logsumexp(-1)

    def marginals(self, x: Tensor) -> Tensor:
        """p(z_nt = s | x_n) by the forward-backward algorithm: (N, T, S)."""
        log_b = self._log_emission(x)
        forward, log_a = self._filter(log_b), self.transition.log()
        backward = [torch.zeros_like(log_b[:, 0])]
        for t in range(log_b.shape[1] - 1, 0, -1):
            ahead = (log_b[:, t] + backward[-1]).unsqueeze(1)  # (N, 1, S)
            backward.append((log_a + ahead).logsumexp(-1))
        return (forward + torch.stack(backward[::-1], 1)).softmax(-1).detach()

    @torch.no_grad()
    def viterbi(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely states (N, T) of sequences `x`, and their log-probability with x (N,)."""
        log_b, log_a = self._log_emission(x), self.transition.log()
        score = self.start.log() + log_b[:, 0]  # (N, S)
        origins = []
        for t in range(1, log_b.shape[1]):
            score, origin = (score.unsqueeze(-1) + log_a).max(1)
            score = score + log_b[:, t]
            origins.append(origin)
        best, state = score.max(-1)
        path = [state]
        for origin in reversed(origins):
            path.append(origin.gather(1, path[-1].unsqueeze(1)).squeeze(1))
        return torch.stack(path[::-1], 1), best

    def initialize(self, x: Tensor) -> None:
        """Start from k-means over all steps, or from random tables; states tend to stay.

        Raises:
            ValueError: for fewer distinct values than states, or categories out of range.
        """
        self._meet(x)
        S = self.states
        like: dict[str, Any] = {"dtype": self.start.dtype, "device": x.device}
        self.start = torch.full((S,), 1 / S, **like)
        self.transition = torch.full((S, S), 0.5 / S, **like) + 0.5 * torch.eye(S, **like)
        rows = x.detach().reshape(-1, self._width)
        rows = rows[~rows.isnan().all(1)]
        if self.emission == "categorical":
            self._check_categories(rows)
            concentration = torch.full((S, self._width, self.categories or 1), 2.0, **like)
            self.table = torch.distributions.Dirichlet(concentration).sample()
            return
        rows = filled(rows)
        r = start_clusters(rows, S).double()  # (N T, S)
        weight = r.sum(0).unsqueeze(-1)
        means = r.mT @ rows.double() / weight
        spread = r.mT @ rows.double().square() / weight - means.square()
        whole = rows.double().var(0, correction=0)
        variance = (spread * weight + whole) / (weight + 1)  # a cluster of one row has a spread
        self.means = means.to(**like)
        self.scale = (variance - self.floor).clamp(min=self.floor).sqrt().to(**like)

    def degenerate(self, x: Tensor) -> str | None:
        """Why these parameters must not be chosen although their likelihood is high, or None.

        A Gaussian state has collapsed if some variance is below ten floors while it explains a
        step: its likelihood then says how low the floor is.
        """
        if self.emission == "categorical":
            return None
        used = self.marginals(x).sum((0, 1)) > 0.5
        variance = torch.where(used, (self.scale**2).amin(-1), torch.inf) + self.floor
        s = int(variance.argmin())
        if variance[s] > 10 * self.floor:
            return None
        return (
            f"state {s} has collapsed: its least variance is {variance[s].item():.1e} beside a "
            f"floor of {self.floor:.0e}. Start again, use fewer states, or raise floor."
        )

    def _chain(self, seen: Tensor) -> Any:
        """All T steps as one distribution; `seen` (N, T, P) says which values count."""
        T, S = seen.shape[1], self.states
        first = self.start.log().expand(1, S, S)  # Pyro's chain moves before its first step: to π
        steps = torch.cat([first, self.transition.log().expand(T - 1, S, S)])
        return DiscreteHMM(self.start.new_zeros(S), steps, self._emission(seen), duration=T)

    def _emission(self, seen: Tensor) -> Any:
        """p(x | z) for every state: batch (N, T, S), event (P,)."""
        seen = seen.unsqueeze(-2)  # (N, T, 1, P)
        shape = (*seen.shape[:2], self.states, seen.shape[-1])
        if self.emission == "categorical":
            return Categorical(self.table).expand(shape).mask(seen).to_event(1)
        scale = (self.scale**2 + self.floor).sqrt()
        return Normal(self.means, scale).expand(shape).mask(seen).to_event(1)

    def _log_emission(self, x: Tensor) -> Tensor:
        """log p(x_nt | z_nt = s): (N, T, S)."""
        self._meet(x)
        x = x if x.dim() == 3 else x.unsqueeze(-1)
        log_prob: Tensor = self._emission(~x.isnan()).log_prob(x.nan_to_num(0.0).unsqueeze(-2))
        return log_prob

    def _filter(self, log_b: Tensor) -> Tensor:
        """log p(z_nt = s, x_n1, …, x_nt): (N, T, S)."""
        log_a = self.transition.log()
        alpha = [self.start.log() + log_b[:, 0]]
        for t in range(1, log_b.shape[1]):
            alpha.append((alpha[-1].unsqueeze(-1) + log_a).logsumexp(1) + log_b[:, t])
        return torch.stack(alpha, 1)

    @property
    def _width(self) -> int:
        assert self.observed is not None
        return self.observed

    def _check_categories(self, rows: Tensor) -> None:
        C = self.categories or 0
        values = rows[~rows.isnan()]
        wrong = values[(values < 0) | (values >= C) | (values != values.round())]
        if len(wrong):
            raise ValueError(
                f"categories={C} means values 0, …, {C - 1}; the data has {wrong[0].item():g}. "
                "Code the values from 0, or raise categories."
            )

    def _meet(self, x: Tensor) -> None:
        """Take P from the data if nobody gave it; refuse data of another shape."""
        width = x.shape[2] if x.dim() == 3 else 1
        if x.dim() not in (2, 3) or (self.observed is not None and width != self.observed):
            raise ValueError(
                f"HiddenMarkovModel takes sequences (N, T, {self.observed or 'P'}), or (N, T) for "
                f"one column, got {tuple(x.shape)}. Save them as one .npy array, short ones "
                "filled up with NaN."
            )
        if not x.is_floating_point():
            raise ValueError(
                f"HiddenMarkovModel takes floating-point numbers (NaN is missing), got {x.dtype}. "
                "Pass x.float()."
            )
        if self.observed is None:
            self._resize(width, dtype=x.dtype, device=x.device)

    def _resize(self, observed: int, **like: Any) -> None:
        self.observed = observed
        S = self.states
        self.start = PyroParam(torch.full((S,), 1 / S, **like), constraints.simplex)
        rows = torch.full((S, S), 0.5 / S, **like) + 0.5 * torch.eye(S, **like)
        self.transition = PyroParam(rows, constraints.simplex)
        if self.emission == "gaussian":
            # Equal means would receive equal gradients and never part.
            self.means = PyroParam(torch.randn(S, observed, **like), constraints.real)
            self.scale = PyroParam(torch.ones(S, observed, **like), constraints.positive)
        else:
            table = torch.rand(S, observed, self.categories or 1, **like) + 1
            self.table = PyroParam(table / table.sum(-1, keepdim=True), constraints.simplex)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        name = "means" if self.emission == "gaussian" else "table"
        kept = state.get(f"{prefix}{name}_unconstrained")
        if self.observed is None and kept is not None:
            self._resize(kept.shape[1], dtype=kept.dtype, device=kept.device)
        super()._load_from_state_dict(state, prefix, *rest)
