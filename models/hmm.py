"""Hidden Markov model with Gaussian or categorical emissions.

    z_n1 ~ Categorical(π)                   latent    (N,)
    z_nt ~ Categorical(A_{z_n,t-1})         latent    (N, T), marginalized
    x_nt ~ p(x | z_nt)                      observed  (N, T, P)

with p one of

    gaussian       x_ntp ~ N(μ_{z,p}, σ²_{z,p}),  σ² = s² + floor
    categorical    x_ntp ~ Categorical(θ_{z,p}),  x in {0, …, C - 1}

Columns are independent given the state. π, A and the emissions are parameters, estimated by
maximum likelihood: the bound is log p(x) itself, and the guide is empty. Expectation-maximization
(`baum_welch`) needs no step size. The program marginalizes the chain by
`pyro.distributions.DiscreteHMM` in log₂ T rounds of products of S × S matrices: N T S³ operations,
few of them sequential. `log_evidence`, `marginals` and `viterbi` are recursions of T steps, N T S².

A missing value is NaN and is left out of the likelihood, exactly. A short sequence is padded with
NaN at its end, which leaves its likelihood unchanged.

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

from ppl_lvm.authoring import preserve_rng
from ppl_lvm.core.messages import unknown
from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.examples import example_sequences
from ppl_lvm.models.parts.mixtures.moments import restart_clusters, start_clusters
from ppl_lvm.models.parts.row_checks import mean_imputed
from ppl_lvm.models.parts.state_space import baum_welch
from ppl_lvm.models.parts.state_space.sequences import (
    as_sequences,
    check_sequences,
    check_several_steps,
    seen_steps,
    segment_features,
)
from ppl_lvm.nn.lazy import LazilySized
from ppl_lvm.nn.units import ColumnUnits

EMISSIONS = ("gaussian", "categorical")

State = dict[str, Tensor]


class HiddenMarkovModel(LazilySized, PyroModule):
    """S states that explain sequences of P columns, by maximum likelihood.

    Args:
        states: S.
        observed: P. If None, inferred from the first batch or a loaded state.
        emission: one of `EMISSIONS`.
        categories: C, for `emission="categorical"` only.
        floor: smallest variance of a Gaussian emission, as a share of the variance of its column.
    """

    example_batch = staticmethod(example_sequences)

    units: ColumnUnits  # of a Gaussian emission
    start: Tensor  # π (S,)
    transition: Tensor  # A (S, S), from row to column
    means: Tensor  # μ (S, P)
    scale: Tensor  # s (S, P)
    table: Tensor  # θ (S, P, C)

    def __init__(
        self,
        states: Count = 3,
        observed: Count | None = None,
        emission: str = "gaussian",
        categories: Count | None = None,
        floor: Positive = 1e-6,
    ) -> None:
        super().__init__()
        if emission not in EMISSIONS:
            raise ValueError(unknown("emission", emission, EMISSIONS))
        if (emission == "categorical") != (categories is not None):
            raise ValueError(
                "emission='categorical' needs categories=C, the number of values of a column; "
                f"'gaussian' takes none. Got {emission!r}, categories={categories}."
            )
        self.states = states
        self.emission = emission
        self.categories = categories
        self.floor = floor
        self.set_sizes(observed)

    def forward(self, x: Tensor) -> None:
        """Sequences `x` (N, T, P), or (N, T) if P = 1; NaN where a value is missing."""
        x = self._sequences(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self._chain(~x.isnan()), obs=x.nan_to_num(0.0))

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_n) by the forward algorithm, in nats: (N,)."""
        log_b = self._log_emission(x)
        log_alpha = baum_welch.forward(self.start.log(), self.transition.log(), log_b)
        return log_alpha[:, -1].logsumexp(-1)

    def marginals(self, x: Tensor) -> Tensor:
        """p(z_nt = s | x_n) by the forward-backward algorithm: (N, T, S)."""
        log_a, log_b = self.transition.log(), self._log_emission(x)
        log_alpha = baum_welch.forward(self.start.log(), log_a, log_b)
        return (log_alpha + baum_welch.backward(log_a, log_b)).softmax(-1).detach()

    @torch.no_grad()
    def viterbi(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Most likely states (N, T) of sequences `x`, and their log-probability with x (N,)."""
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
        """Start from k-means over all steps, or from random tables, with persistent states.

        Raises:
            ValueError: for sequences of one step, fewer distinct values than states, or categories
                out of range.
        """
        self.initialize_restart(0, x)

    def initialize_restart(self, restart: int, x: Tensor) -> None:
        """Start restart number `restart` of EM, of four kinds in turn.

        k-means over steps; k-means over segments of a random length by mean and spread; random
        spreads about the mean; the nearest of S random steps. But for restart 0, initial and
        transition probabilities are drawn too.
        """
        x, S = self._sequences(x), self.states
        check_several_steps(x, "HiddenMarkovModel")
        like: dict[str, Any] = {"dtype": self.start.dtype, "device": x.device}
        self.start = torch.full((S,), 1 / S, **like)
        self.transition = torch.full((S, S), 0.5 / S, **like) + 0.5 * torch.eye(S, **like)
        rows = seen_steps(x)
        if self.emission == "categorical":
            self._check_categories(rows)
            concentration = torch.full_like(self.table, 2.0)
            self.table = torch.distributions.Dirichlet(concentration).sample()
            self._draw_chain(restart)
            return
        rows = mean_imputed(rows)
        if (distinct := len(rows.unique(dim=0))) < S:
            raise ValueError(
                f"{S} states need at least as many distinct values, and {len(rows)} steps show "
                f"{distinct}. Use states={distinct} or fewer, or more data."
            )
        self.units.set_from(x)
        rows = self.units.standardize(rows.double())
        overall = rows.var(0, correction=0)
        if S > 1 and restart % 4 == 2:
            # Half a standard deviation between means, and spreads apart by up to e^±1.5.
            means = rows.mean(0) + 0.5 * overall.sqrt() * torch.randn(S, 1).to(overall)
            factor = (3 * torch.rand(S, 1) - 1.5).exp().to(overall)
            self._set_emission(means, factor.square() * overall)
            self._draw_chain(restart)
            return
        r = self._restart_clusters(restart, x, rows).double()  # (N T, S)
        weight = r.sum(0).unsqueeze(-1)
        means = r.mT @ rows / weight.clamp(min=1e-300)
        spread = r.mT @ rows.square() / weight.clamp(min=1e-300) - means.square()
        # A cluster of one row borrows its variance.
        self._set_emission(means, (spread * weight + overall) / (weight + 1))
        self._draw_chain(restart)

    def _restart_clusters(self, restart: int, x: Tensor, rows: Tensor) -> Tensor:
        """One-hot states (M, S) of observed steps of `x`, standardized as `rows` (M, P)."""
        S, kind = self.states, restart % 4
        if kind == 3:
            return restart_clusters(rows, S, 1)
        if kind == 1:
            length = int(torch.randint(4, 33, ()))
            standard = self.units.standardize(x.double())
            features = segment_features(torch.where(x.isnan(), rows.mean(0), standard), length)
            features = features[~x.flatten(0, 1).isnan().all(1)]
            if len(features.unique(dim=0)) >= S:
                return start_clusters(features, S)
        return start_clusters(rows, S)

    @property
    def least(self) -> Tensor:
        """The smallest variances of a Gaussian emission: floor times the squared units, (P,)."""
        return self.floor * self.units.variance

    def _set_emission(self, means: Tensor, variance: Tensor) -> None:
        """Set the emission from moments (S, P) of standardized columns."""
        self.means = self.units.restore(means).to(self.start)
        scale = (variance - self.floor).clamp(min=self.floor).sqrt()
        self.scale = (self.units.scale * scale).to(self.start)

    def _draw_chain(self, restart: int) -> None:
        """Draw π and A, with persistence in (½, 1), for every restart but the first."""
        if restart == 0:
            return
        S = self.states
        concentration = torch.ones(S, dtype=torch.float64)
        dirichlet = torch.distributions.Dirichlet(concentration)
        persistence = 0.5 + 0.49 * torch.rand(S, 1, dtype=torch.float64)
        eye = torch.eye(S, dtype=torch.float64)
        transition = persistence * eye + (1 - persistence) * dirichlet.sample((S,))
        self.start = (0.5 * dirichlet.sample() + 0.5 / S).to(self.start)
        self.transition = (0.98 * transition + 0.02 / S).to(self.start)

    def degenerate(self, x: Tensor) -> str | None:
        """Reason to reject these parameters although their likelihood is high, or None.

        A Gaussian state has collapsed if some variance is below ten floors while it explains a
        step: its likelihood then depends on the floor only.
        """
        if self.emission == "categorical":
            return None
        used = self.marginals(x).sum((0, 1)) > 0.5
        shares = (self.scale**2 / self.units.variance).amin(-1)
        variance = torch.where(used, shares, torch.inf) + self.floor
        s = int(variance.argmin())
        if variance[s] > 10 * self.floor:
            return None
        return (
            f"state {s} has collapsed: its smallest variance is {variance[s].item():.1e} of its "
            f"column's, beside a floor of {self.floor:.0e}. Restart, use fewer states, or raise "
            "floor."
        )

    def em_state(self) -> State:
        """θ of expectation-maximization (`ppl_lvm.fitting.em`), as `baum_welch` describes it.

        Its probabilities sum to one in doubles, so that the first step cannot lower the likelihood.
        """
        state = {name: t.detach().double() for name, t in self._theta().items()}
        for name in [n for n in ("start", "transition", "table") if n in state]:
            state[name] = state[name] / state[name].sum(-1, keepdim=True)
        return state

    def set_em_state(self, state: State) -> None:
        """Set the parameters to θ."""
        dtype = self.start.dtype
        tiny = torch.finfo(dtype).tiny  # a probability or scale of 0 has no logarithm
        self.start = state["start"].to(dtype).clamp(min=tiny)
        self.transition = state["transition"].to(dtype).clamp(min=tiny)
        if self.emission == "categorical":
            self.table = state["table"].to(dtype).clamp(min=tiny)
            return
        self.means = state["means"].to(dtype)
        self.scale = (state["variance"] - self.least).clamp(min=tiny).sqrt().to(dtype)

    def e_step(self, state: State, x: Tensor) -> tuple[State, Tensor]:
        """Expected moves and emissions summed over sequences `x`, and log p(x)."""
        x = self._sequences(x)
        if self.emission == "categorical":
            self._check_categories(x)
        return baum_welch.expect(state, x)

    def m_step(self, state: State, statistics: State) -> State:
        """θ' in closed form; the smallest variance is twice the floor, as in `initialize`."""
        gaussian = self.emission == "gaussian"
        return baum_welch.maximize(state, statistics, 2 * self.least.double() if gaussian else None)

    def transport_statistics(
        self, state: State, new: State, made_of: State, statistics: State
    ) -> State:
        """Statistics taken at θ, in the coordinates of θ', the M-step of `made_of`."""
        return baum_welch.transport_statistics(state, new, statistics)

    def _theta(self) -> State:
        chain = {"start": self.start, "transition": self.transition}
        if self.emission == "categorical":
            return {**chain, "table": self.table}
        return {**chain, "means": self.means, "variance": self.scale**2 + self.least}

    def _chain(self, seen: Tensor) -> Any:
        """All T steps as one distribution; `seen` (N, T, P) marks the values that are present."""
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
        scale = (self.scale**2 + self.least).sqrt()
        return Normal(self.means, scale).expand(shape).mask(seen).to_event(1)

    def _log_emission(self, x: Tensor) -> Tensor:
        """log p(x_nt | z_nt = s): (N, T, S)."""
        x = self._sequences(x)
        if self.emission == "categorical":
            self._check_categories(x)
        return baum_welch.log_emission(self._theta(), x)

    def _check_categories(self, x: Tensor) -> None:
        C = self.categories or 0
        values = x[~x.isnan()]
        wrong = values[(values < 0) | (values >= C) | (values != values.round())]
        if len(wrong):
            raise ValueError(
                f"categories={C} means values 0, …, {C - 1}; the data has {wrong[0].item():g}. "
                "Code the values from 0, or raise categories."
            )

    def _sequences(self, x: Tensor) -> Tensor:
        """`x` as sequences (N, T, P), checked."""
        self.infer_sizes(x)
        return as_sequences(x)

    def batch_sizes(self, *batch: Tensor, name: str) -> tuple[int, ...]:
        return (check_sequences(batch[0], self.observed, name),)

    def resize(self, observed: int, **like: Any) -> None:
        S = self.states
        self.start = PyroParam(torch.full((S,), 1 / S, **like), constraints.simplex)
        rows = torch.full((S, S), 0.5 / S, **like) + 0.5 * torch.eye(S, **like)
        self.transition = PyroParam(rows, constraints.simplex)
        if self.emission == "gaussian":
            # Equal means would receive equal gradients and stay equal. The random state is
            # preserved, so that `initialize` draws the same numbers in either order.
            with preserve_rng():
                means = torch.randn(S, observed, **like)
            self.units = ColumnUnits(observed, **like)
            self.means = self.units.location(means)
            self.scale = self.units.spread(torch.ones(S, observed, **like))
        else:
            with preserve_rng():
                table = torch.rand(S, observed, self.categories or 1, **like) + 1
            self.table = PyroParam(table / table.sum(-1, keepdim=True), constraints.simplex)

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (
            state[
                "means_unconstrained" if self.emission == "gaussian" else "table_unconstrained"
            ].shape[1],
        )
