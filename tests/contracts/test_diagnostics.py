"""Every diagnostic in the folder, and every row it gives, says good to a sound case and not good to
one built to fail it. A diagnostic that cannot fail is a defect; one without cases is found here.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm import diagnostics
from ppl_lvm.diagnostics.bound_tightness import sandwich, tightness
from ppl_lvm.diagnostics.calibration import sbc, vsbc
from ppl_lvm.diagnostics.convergence import climb, convergence
from ppl_lvm.diagnostics.diagnosis import NAMES, Restarts, _Asking
from ppl_lvm.diagnostics.finding import Finding
from ppl_lvm.diagnostics.gradient_noise import gradient_quality
from ppl_lvm.diagnostics.inference_gaps import gaps, generalization
from ppl_lvm.diagnostics.latent_usage import latent_use
from ppl_lvm.diagnostics.leave_one_out import loo
from ppl_lvm.diagnostics.mixture_components import MixtureComponents, stability
from ppl_lvm.diagnostics.parameter_drift import drift
from ppl_lvm.diagnostics.pareto_k import pareto_k
from ppl_lvm.diagnostics.predictive_checks import check, two_sample
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.trajectory import Trajectory

Case = Callable[[], Any]
# Rows that hold a figure for comparison and pass no judgement.
NO_JUDGMENT = {"BIC (smaller is better)"}
# A row that knows no fault, only "good" and "unknown": equal fits may differ by symmetries.
NO_FAULT = {"share of parameters' numbers that differ between … restarts of one bound"}


class Cases:
    """Sound and faulty cases by class of result; `linear` and `guide` are the fixtures."""

    def __init__(self, linear: Any, guide: Any) -> None:
        self.linear, self.guide = linear, guide
        self.x = linear.simulate(200, seed=3)
        self.draw = np.random.default_rng(0)

    def of(self) -> dict[str, tuple[Sequence[Case], Sequence[Case]]]:
        """Class name -> (sound cases, faulty cases)."""
        m, x = self.linear, self.x
        q, narrow = self.guide(m), self.guide(m, 0.3)
        return {
            "Convergence": ([self.flat], [self.rising]),
            "Climb": (
                [lambda: climb({"bound": list(-(0.5 ** np.arange(30)))}, [0.0, 0.0])],
                [lambda: climb({"bound": list(-(0.9 ** np.arange(5)))}, [0.0, -1.0])],
            ),
            "Drift": ([lambda: self.drift(0.0)], [lambda: self.drift(0.1)]),
            "Tightness": (
                [lambda: self.tight(q, 0.0)],
                [lambda: self.tight(narrow, 0.0), lambda: self.tight(q, 1.0)],
            ),
            "Sandwich": (
                [lambda: sandwich(m, q, x[:50], temperatures=30)],
                [lambda: sandwich(m, self.guide(m, 1.0, 3.0), x[:50], temperatures=2)],
            ),
            "Gaps": (
                [lambda: gaps(m, q, x[:50], log_evidence=m.exact(x[:50]), steps=50)],
                [
                    lambda: gaps(m, self.guide(m, 1.0, 2.0), x[:50], steps=100),
                    self.diagonal_on_a_ridge,
                ],
            ),
            "Generalisation": (
                [lambda: generalization(m, q, (x,), (m.simulate(200, seed=4),))],
                [lambda: generalization(m, q, (x,), (3 * m.simulate(200, seed=4),))],
            ),
            "ParetoK": (
                [lambda: pareto_k(m, q, x), lambda: pareto_k(mean, mean_guide(), x[:, 0])],
                [
                    lambda: pareto_k(m, narrow, x),
                    lambda: pareto_k(m, self.guide(m, 0.6), x),
                    lambda: pareto_k(mean, mean_guide(scale=0.3), x[:, 0]),
                ],
            ),
            "Calibration": ([lambda: sbc(m, q, x)], [lambda: sbc(m, narrow, x)]),
            "Symmetry": ([lambda: self.symmetry(0.0)], [lambda: self.symmetry(0.5)]),
            "Check": (
                [lambda: check(m, q, x), lambda: check(mean, mean_guide(), y(), prior=True)],
                [
                    lambda: check(m, q, 2 * x),
                    lambda: check(mean, mean_guide(), 50 + y(), prior=True),
                ],
            ),
            "TwoSample": ([lambda: two_sample(m, q, x)], [lambda: two_sample(m, q, 2 * x)]),
            "LeaveOneOut": (
                [lambda: loo(mean, mean_guide(), y())],
                [
                    lambda: loo(mean, mean_guide(), 3 * y()),
                    lambda: loo(mean, mean_guide(scale=0.3, shift=3.0), y()),
                ],
            ),
            "LatentUse": (
                [lambda: latent_use(m, q, x)],
                [lambda: latent_use(m, prior_guide, x), lambda: latent_use(m, q, 4 * x)],
            ),
            "Mixture": ([lambda: self.mixture(8.0)], [lambda: self.mixture(0.1)]),
            "Stability": ([lambda: self.stability(False)], [lambda: self.stability(True)]),
            "GradientQuality": (
                [lambda: self.gradient()],
                [
                    lambda: self.gradient(dead=True),
                    lambda: self.gradient(rare=True),
                    lambda: self.gradient(noisy=True, converged=False),
                ],
            ),
        }

    def flat(self) -> Any:
        bounds = list(self.draw.normal(-5, 0.1, 500))
        means = [self.draw.normal(-5, 0.01, 20) for _ in range(2)]
        return convergence({"bound": bounds}, [-5.0, -5.01], means)

    def rising(self) -> Any:
        bounds = list(self.draw.normal(-5, 0.1, 500) + np.linspace(0, 5, 500))
        means = [self.draw.normal(-5 - s, 0.01, 20) for s in range(2)]
        return convergence({"bound": bounds}, [-5.0, -6.0], means)

    def drift(self, slope: float) -> Any:
        pair = ModelGuidePair(self.linear, prior_guide, Trace_ELBO())
        t = np.arange(200)[:, None]
        ways = [slope * (s + 1) * t + self.draw.normal(size=(200, 5)) for s in range(2)]
        trails = [Trajectory({"model/a": torch.from_numpy(way)}) for way in ways]
        return drift(pair, trails, [-1.0, -1.0])

    def tight(self, guide: Any, lie: float) -> Any:
        model = self.linear
        x = self.x[:30]
        model.log_likelihood = lambda x: model.exact(x) + lie
        try:
            return tightness(model, guide, x, particles=(1, 10), temperatures=25)
        finally:
            del model.log_likelihood

    def diagonal_on_a_ridge(self) -> Any:
        model = self.linear
        with torch.no_grad():
            model.W.copy_(2 * torch.ones(5, 2) + 0.05 * torch.randn(5, 2))
        x = model.simulate(50)
        mean_, covariance = model.posterior(x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", Normal(mean_, covariance.diagonal().sqrt()).to_event(1))

        return gaps(model, guide, x, log_evidence=model.exact(x), steps=200)

    def symmetry(self, shift: float) -> Any:
        return vsbc(
            mean,
            lambda x: mean_guide(shift=shift, center=float(x.sum()) / (len(x) + 1)),
            torch.zeros(10),
            num_simulations=60,
        )

    def mixture(self, apart: float) -> Any:
        score = apart * self.draw.normal(size=(60, 3))
        score[:, 2] -= 0 if apart > 1 else 30  # the third explains nothing
        r = np.exp(score - score.max(1, keepdims=True))
        return MixtureComponents(r / r.sum(1, keepdims=True), -100.0, 5, None)

    def stability(self, shuffled: bool) -> Any:
        one = np.eye(3)[self.draw.integers(3, size=60)]
        other = one[self.draw.permutation(60)] if shuffled else one[:, [2, 0, 1]]
        return stability([one, other])

    def gradient(
        self,
        dead: bool = False,
        rare: bool = False,
        noisy: bool = False,
        converged: bool | None = True,
    ) -> Any:
        pair = ModelGuidePair(Faulty(dead, rare), Learned(noisy), Trace_ELBO())
        x = torch.randn(20)
        pair.materialize_parameters(x)
        return gradient_quality(pair, x, converged=converged, replicates=200)


def y() -> Tensor:
    """Data that `mean` may well have made."""
    return torch.from_numpy(np.random.default_rng(4).normal(0.3, 1, 50)).float()


def mean(x: Tensor) -> None:
    """mu ~ N(0, 1), x_n ~ N(mu, 1)."""
    mu = pyro.sample("mu", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(mu, 1.0), obs=x)


def mean_guide(scale: float = 1.0, shift: float = 0.0, center: float | None = None) -> Any:
    """Its posterior, narrower or shifted by so many standard deviations."""

    def guide(x: Tensor) -> None:
        N = len(x)
        at = x.sum() / (N + 1) if center is None else torch.tensor(center)
        pyro.sample("mu", Normal(at + shift * (N + 1) ** -0.5, scale * (N + 1) ** -0.5))

    return guide


def prior_guide(x: Tensor) -> None:
    """A collapsed posterior."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))


class Faulty(PyroModule):
    """x_n ~ N(a z, 1) with a parameter that nothing reads, or one of rare, enormous gradients."""

    def __init__(self, dead: bool, rare: bool) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))
        self.rare = rare
        if dead:
            self.unused = nn.Parameter(torch.tensor(1.0))
        if rare:
            self.b = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        if self.rare:
            size = 1e5 if float(torch.rand(())) < 0.05 else 1.0
            pyro.factor("rare", size * self.b)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(self.a * z, 1.0), obs=x)


class Learned(PyroModule):
    """q(z | x) near the posterior; `noisy`: its gradient is lost in what it adds to the score."""

    def __init__(self, noisy: bool) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(0.5))
        self.noisy = noisy
        if noisy:
            self.c = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        if self.noisy:
            pyro.factor("noise", self.c * 100 * torch.randn(()), has_rsample=True)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.m * x + 0.3, 0.7))


def kind(row: Finding) -> str:
    """A row's name without what differs between fits."""
    return re.sub(r"\d+(\.\d+)?%?|\([^)]*bound\)", "…", row.name)


def results() -> set[str]:
    """Names of the classes in the folder that give findings."""
    found = set()
    for module in pkgutil.iter_modules(diagnostics.__path__):
        loaded = importlib.import_module(f"ppl_lvm.diagnostics.{module.name}")
        found |= {
            name
            for name, part in vars(loaded).items()
            if isinstance(part, type) and callable(getattr(part, "findings", None))
        }
    return found


RESULTS = sorted(results())


@pytest.mark.parametrize("name", RESULTS)
def test_is_good_on_a_sound_case_and_each_row_fails_where_it_should(
    name: str, linear: Any, exact_guide: Any
) -> None:
    cases = Cases(linear, exact_guide).of()
    assert name in cases, f"{name} has no case that it must pass and none that it must fail"
    sound, faulty = cases[name]
    rows = [row for case in sound for row in case().findings()]
    judged = [row for row in rows if kind(row) not in NO_JUDGMENT]
    assert judged
    assert not [(r.name, r.figure, r.why) for r in judged if r.verdict != "good"]
    found = [row for case in faulty for row in case().findings()]
    failed = [row for row in found if row.verdict in ("warning", "bad")]
    unsure = {kind(row) for row in found if row.verdict == "unknown"} & NO_FAULT
    never = {kind(row) for row in judged} - {kind(row) for row in failed} - unsure
    assert not never, f"rows that no case fails: {never}"
    assert all(row.remedy for row in failed)


def test_no_case_is_left_over_and_every_question_is_asked(linear: Any, exact_guide: Any) -> None:
    assert set(Cases(linear, exact_guide).of()) == set(RESULTS) - {"Diagnosis"}
    pair = ModelGuidePair(linear, exact_guide(linear), Trace_ELBO())
    x = linear.simulate(5)
    trail = Trajectory(responsibilities={"k": torch.ones(5, 1)})
    asking = _Asking(pair, {"bound": []}, (x,), None, Restarts((0.0, 0.0), (trail, trail)), 5, 0)
    asking.refits, asking.joint = 20, True
    assert {step[0] for step in asking.steps()} == set(NAMES)
