"""Expectation-maximisation, for models that offer its two steps.

With parameters θ and the statistics T that the complete data's likelihood depends on,

    E    T̄(θ) = Σ_n E[ T(x_n, z) | x_n, θ ],    L(θ) = Σ_n log p(x_n | θ),
    M    θ' = argmax_θ' E[ log p(x, z | θ') | x, θ ], a function of θ and T̄,

and L(θ') ≥ L(θ). T̄ and L are sums over rows. So data larger than memory are read batch by batch,
and processes that hold different rows (torch.distributed) add up their sums. Restarts are one
more leading dimension of θ, made by `torch.vmap`: a model writes its steps for one start.

What is left to gain is judged as in Böhning et al.: gains shrink by a factor a < 1 near the
optimum, so that gain · a / (1 - a) of log-likelihood lies ahead.

References:
    Dempster, Laird, Rubin (1977). Maximum likelihood from incomplete data via the EM algorithm.
    Böhning, Dietz, Schaub, Schlattmann, Lindsay (1994). The distribution of the likelihood ratio
    for mixtures of densities from the one-parameter exponential family. Section 3.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch import distributed as dist

from ppl_lvm.data import Data, load_data
from ppl_lvm.evidence import log_evidence
from ppl_lvm.objectives import objective as make_objective
from ppl_lvm.pair import Pair, copied
from ppl_lvm.programs import GuideSource, ModelSource
from ppl_lvm.run import TEMPLATE_ROWS, Run, evidence_record, surroundings
from ppl_lvm.trail import CLUSTERED_ROWS, Trail, clusterings

INITIALIZE_ROWS = 100_000
READ_ROWS = 65_536
TOGETHER_ROWS = 1024
# A step's log-likelihood may fall by this much (nats per datum, relative) through rounding alone.
ROUNDING = 1e-10

State = dict[str, Tensor]
Statistics = dict[str, Tensor]


@runtime_checkable
class EMModel(Protocol):
    """What `fit_em` asks of a model. θ is a dictionary of tensors in double precision.

    `e_step` and `m_step` are functions of their arguments: they leave the model as it is and do
    not branch on values of θ or T̄, since `torch.vmap` runs them for all restarts together.
    Optional: `initialize(*batch)` and `degenerate(*batch)`, see `fit`, and `posterior(*batch)`,
    which samples the latent sites from p(z | x): the guide of the run.
    """

    def em_state(self) -> State:
        """The present parameters θ."""

    def set_em_state(self, state: State) -> None:
        """Take θ over as the model's parameters."""

    def e_step(self, state: State, *batch: Tensor) -> tuple[Statistics, Tensor]:
        """T̄ and log-likelihood (), summed over the rows of the batch."""

    def m_step(self, state: State, statistics: Statistics) -> State:
        """θ' from T̄ at θ."""


class NotMonotoneError(ArithmeticError):
    """An iteration of EM lowered the log-likelihood: one of the two steps is wrong."""


class ExactPosterior(PyroModule):
    """The guide q(z | x) = p(z | x) of a model that knows it: calls `model.posterior(*batch)`.

    It has no parameters of its own.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not hasattr(model, "posterior"):
            raise ValueError(
                f"{type(model).__name__} has no posterior(*batch) that samples its latents. "
                "Write one, or choose another guide."
            )
        self._model = (model,)  # in a tuple: its parameters are the model's, not this guide's

    def forward(self, *batch: Tensor) -> None:
        self._model[0].posterior(*batch)


@dataclass
class EM:
    """The iterations of some starts together.

    Attributes:
        state: θ with the restarts R leading in every tensor.
        bounds: log-likelihood of every iteration, nats per datum, one list a restart; the last
            one is that of `state`.
        converged: one truth a restart.
    """

    model: Any
    data: Data
    state: State
    batch_size: int = READ_ROWS
    tolerance: float = 1e-6
    bounds: list[list[float]] = field(default_factory=list)
    converged: list[bool] = field(default_factory=list)

    def run(self, max_iterations: int) -> None:
        """Iterate each restart until it has converged, `max_iterations` times at most.

        Raises:
            NotMonotoneError: the log-likelihood fell by more than rounding.
            ValueError: it is not a finite number.
        """
        R = len(next(iter(self.state.values())))
        self.bounds = [[] for _ in range(R)]
        self.converged = [False] * R
        active = torch.arange(R)
        for iteration in range(max_iterations):
            state = {name: t[active] for name, t in self.state.items()}
            statistics, log_likelihood = self.e_step(state)
            per_datum = (log_likelihood / len(self.data)).tolist()
            for r, bound in zip(active.tolist(), per_datum, strict=True):
                self._judge(r, bound)
            going = torch.tensor([not self.converged[r] for r in active.tolist()])
            if not going.any() or iteration == max_iterations - 1:
                return
            active = active[going]
            state = {name: t[going] for name, t in state.items()}
            statistics = {name: t[going] for name, t in statistics.items()}
            for name, t in torch.vmap(self.model.m_step)(state, statistics).items():
                self.state[name][active] = t

    def e_step(self, state: State) -> tuple[Statistics, Tensor]:
        """T̄ and log-likelihood (R,) of `state` over all rows, of all processes."""
        total: Statistics = {}
        log_likelihood: Any = 0.0
        for batch in self._batches(like=next(iter(state.values()))):
            statistics, part = self._sums(state, *batch)
            log_likelihood = log_likelihood + part
            total = {name: t + total[name] if total else t for name, t in statistics.items()}
        if _processes() > 1:
            for t in (*total.values(), log_likelihood):
                dist.all_reduce(t)
        return total, log_likelihood

    def _sums(self, state: State, *batch: Tensor) -> tuple[Statistics, Tensor]:
        """`e_step` of every restart: together where rows are few, in turn where they are many.

        In turn, a batch stays in the processor's cache and the fastest matrix products apply,
        which vmap forbids; together, the operations' fixed costs are paid once.
        """
        R = len(next(iter(state.values())))
        if R > 1 and len(batch[0]) <= TOGETHER_ROWS:
            step = torch.vmap(self.model.e_step, in_dims=(0, *[None] * len(batch)))
            return step(state, *batch)
        found = [self.model.e_step({k: t[r] for k, t in state.items()}, *batch) for r in range(R)]
        statistics = {k: torch.stack([each[k] for each, _ in found]) for k in found[0][0]}
        return statistics, torch.stack([log_likelihood for _, log_likelihood in found])

    def _batches(self, like: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """This process's part of the rows."""
        rank = dist.get_rank() if _processes() > 1 else 0
        for rows in (
            torch.arange(len(self.data)).tensor_split(_processes())[rank].split(self.batch_size)
        ):
            yield tuple(
                t.to(like) if t.is_floating_point() else t.to(like.device)
                for t in self.data.batch(rows)
            )

    def _judge(self, r: int, bound: float) -> None:
        """Note the bound of restart `r`; whether it has converged."""
        bounds = self.bounds[r]
        at = f"iteration {len(bounds) + 1}" + (f" of restart {r}" if len(self.bounds) > 1 else "")
        if not abs(bound) < float("inf"):
            raise ValueError(
                f"The log-likelihood is {bound} at {at}. Look for values that are not finite or "
                "far out in the data, or raise the model's floor."
            )
        bounds.append(bound)
        if len(bounds) < 2:
            return
        gain, slack = bound - bounds[-2], ROUNDING * (1 + abs(bound))
        if gain < -slack:
            raise NotMonotoneError(
                f"The log-likelihood fell by {-gain:.3e} nats per datum at {at}, from "
                f"{bounds[-2]:.10g} to {bound:.10g}. EM cannot do that: m_step does not maximise "
                f"what the statistics of {type(self.model).__name__}.e_step say, or these are not "
                "sums over rows at the θ they were given."
            )
        self.converged[r] = _ahead(bounds) <= self.tolerance


def fit_em(
    model: Any,
    data: Any,
    *,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
    batch_size: int | None = None,
    restarts: int = 1,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    guide: Any = None,
    directory: str | Path | None = None,
) -> Run:
    """Fit a model by expectation-maximisation. Works on a copy of the model.

    Args:
        model: an `EMModel`, a class of such or its address.
        data: see `load_data`. Missing values (NaN) are the model's business: load them with
            `load_data(source, missing="keep")`.
        max_iterations: E-steps at most.
        tolerance: stop when less than this lies ahead, in nats per datum, by the rate at which
            gains shrink.
        batch_size: rows read at once (default: 65,536). The result does not depend on it.
        restarts: starts with seeds seed, seed + 1, …, iterated together; the most likely is kept
            that the model does not call degenerate. A model without `initialize` has one start.
        seed: of the starts; EM itself draws nothing.
        settings: arguments for a model given as a class or an address.
        guide: default: the exact posterior where the model has one, else as for `fit`.
        directory: keep the run there. Under torch.distributed, every process returns the same
            parameters and the first one writes.

    Returns:
        A run whose history has one "bound" an iteration: log-likelihood in nats per datum.

    Raises:
        ValueError: the model does not offer the two steps, or an option makes no sense.
        NotMonotoneError: the log-likelihood fell by more than rounding.
    """
    begun = time.perf_counter()
    whole = data if isinstance(data, Data) else load_data(data)
    for name, value in (("max_iterations", max_iterations), ("restarts", restarts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    if directory is not None and (Path(directory) / "run.json").exists():
        raise ValueError(f"{directory} holds a run already. Choose another directory.")
    if len(whole) < _processes():
        raise ValueError(f"{len(whole)} rows are too few for {_processes()} processes.")
    source = ModelSource(model if isinstance(model, str) else copied(model)[0], settings)
    made, states = _starts(source, whole, restarts, seed)
    state = {name: torch.stack([s[name] for s in states]) for name in states[0]}
    em = EM(made, whole, state, batch_size or whole.batch_size or READ_ROWS, tolerance)
    with torch.no_grad():
        em.run(max_iterations)
        entries = [_entry(em, r, seed + r) for r in range(restarts)]
        sound = [e for e in entries if e["degenerate"] is None]
        best = max(sound or entries, key=lambda e: float(e["bound"]))
        chosen = entries.index(best)
        made.set_em_state({name: t[chosen] for name, t in em.state.items()})
    for entry in entries:
        entry["chosen"] = entry is best
        entry["seconds"] = time.perf_counter() - begun  # they ran together
    options = {"max_iterations": max_iterations, "tolerance": tolerance, "seed": seed}
    options["batch_size"] = em.batch_size
    run = _as_run(made, source, guide, whole, options, entries, best, em.bounds[chosen])
    run.trails = _trails(run, em, chosen)
    if directory is not None and (_processes() == 1 or dist.get_rank() == 0):
        from ppl_lvm.report.draw import draw

        run.results["directory"] = str(directory)
        run.save(directory)
        draw(run, whole, Path(directory) / "pictures")
    return run


def _trails(run: Run, em: EM, chosen: int) -> tuple[Trail, ...]:
    """How each restart divides some of the rows."""
    model: Any = run.model
    rows = em.data.batch(torch.arange(min(CLUSTERED_ROWS, len(em.data))))
    R, trails = len(em.bounds), {}
    for r in [*(r for r in range(R) if r != chosen), chosen]:  # the chosen one is left in place
        model.set_em_state({name: t[r] for name, t in em.state.items()})
        trails[r] = Trail(responsibilities=clusterings(run._pair, *rows))
    return tuple(trails[r] for r in range(R))


def _starts(source: ModelSource, data: Data, restarts: int, seed: int) -> tuple[Any, list[State]]:
    """A model to run the steps of, and θ of every start."""
    made: Any = None
    states: list[State] = []
    for r in range(restarts):
        pyro.set_rng_seed(seed + r)
        made = source.make(_some_rows(data), restart=r)
        if not isinstance(made, EMModel):
            raise ValueError(
                f"{source.recipe.name} does not offer expectation-maximisation: it needs the "
                "methods em_state, set_em_state, e_step and m_step (see ppl_lvm.em.EMModel). Fit "
                "it with an objective of gradients instead."
            )
        states.append({name: t.detach().clone() for name, t in made.em_state().items()})
    return made, states


def _entry(em: EM, r: int, seed: int) -> dict[str, Any]:
    """What is reported of restart `r`."""
    em.model.set_em_state({name: t[r] for name, t in em.state.items()})
    degenerate = getattr(em.model, "degenerate", None)
    return {
        "seed": seed,
        "bound": em.bounds[r][-1],
        "held_out": None,
        "steps": len(em.bounds[r]),
        "converged": em.converged[r],
        "degenerate": None if degenerate is None else degenerate(*_some_rows(em.data)),
    }


def _as_run(
    model: Callable[..., Any],
    source: ModelSource,
    guide: Any,
    data: Data,
    options: dict[str, Any],
    entries: list[dict[str, Any]],
    best: dict[str, Any],
    bounds: list[float],
) -> Run:
    if guide is None and hasattr(model, "posterior"):
        guide = ExactPosterior
    guides = GuideSource(guide)
    template = data.batch(torch.arange(min(TEMPLATE_ROWS, len(data))))
    with pyro.get_param_store().scope():
        made = guides.make(model, template)
    objective = "TraceEnum_ELBO(max_plate_nesting=1)" if guide is None else "Trace_ELBO"
    pair = Pair(model, made, make_objective(objective))
    pair.prepare(*template)
    rows = _some_rows(data)
    evidence = log_evidence(pair, *rows, num_particles=10, seed=options["seed"])
    results = {key: best[key] for key in ("bound", "held_out", "steps", "seconds", "seed")}
    record = {
        "model": source.recipe.record(),
        "guide": guides.recipe.record(),
        "objective": objective,
        "algorithm": "expectation-maximisation",
        "options": options,
        "restarts_asked": len(entries),
        "restarts": entries,
        **surroundings(data, train_rows=len(data)),
        "results": {
            "directory": None,
            **results,
            "bound_monte_carlo_error": 0.0,  # log p(x) itself
            **evidence_record(evidence, of="training rows", rows=len(rows[0])),
            "converged": best["converged"],
            "degenerate": best["degenerate"],
        },
    }
    history = {"bound": bounds, "validation_step": [], "validation_bound": [], "learning_rate": []}
    return Run(pair, template, history, record)


def _ahead(bounds: list[float]) -> float:
    """Nats per datum that the last three bounds promise; 0 where gains are down to rounding."""
    gain = bounds[-1] - bounds[-2]
    if gain <= 1e-15 * (1 + abs(bounds[-1])):
        return 0.0
    before = bounds[-2] - bounds[-3] if len(bounds) > 2 else 0.0
    if gain >= before:
        return float("inf")
    rate = gain / before
    return max(gain, gain * rate / (1 - rate))


def _some_rows(data: Data) -> tuple[Tensor, ...]:
    if len(data) <= INITIALIZE_ROWS:
        return data.batch(torch.arange(len(data)))
    return data.batch(torch.randperm(len(data))[:INITIALIZE_ROWS].sort().values)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
