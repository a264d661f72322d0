"""Every estimator on every structure of programs: exact or refused.

Expectations are exact: sums over all discrete draws, at a fixed noise of pathwise gradients, and
Gauss-Hermite quadrature for gradients that are equal in their mean over the noise only. The
expected numbers come from Pyro's traces alone.
"""

import math
from functools import partial
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Delta, LogNormal, Normal, RelaxedBernoulli, Uniform
from pyro.poutine.messenger import Messenger
from structured_programs import STRUCTURES, Structured, Values, X
from torch import Tensor
from torch.distributions import kl_divergence

import ppl_lvm.estimators as estimators
from ppl_lvm.particles import Particles
from ppl_lvm.testing.estimator_expectations import FORMULAS
from ppl_lvm.testing.expectations import (
    ForceDraws,
    enumerate_expectation,
    flat_gradient,
)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("doubles")]

UNBIASED = [n for n in estimators.__all__ if getattr(estimators, n).unbiased]
SCORE = ["LeaveOneOut", "VIMCO", "NeuralBaseline"]  # the others share their score terms
BITS = [n for n in UNBIASED if getattr(estimators, n).requires == "bernoulli"]
PATHWISE = ("ELBO", "IWAE", "CUBO", "Renyi", "LeaveOneOut", "VRMax")
MEAN = (
    "ELBO",
    "StickingTheLanding",
    "DReG",
    "DReGRenyi",
    "ThermodynamicELBO",
)  # exact in the mean over the noise
RELAXED = ("GumbelSoftmax", "StraightThrough")
TEMPERED = [n for n in STRUCTURES if "scale" in n or "mask" in n]
TWINS = [n for n, s in STRUCTURES.items() if "g" not in s.values]
ONE_BIT = ("nested scales", "mini batch", "scale and mask by a draw", "point with a density")


def _is_quadratic_size(program: Structured, name: str) -> bool:
    """True if a grid over the noise of all particles is small, and the rows can be its nodes."""
    shapes = list(program.normals.values())
    most = 2 if name in ("ELBO", "StickingTheLanding") else 1
    local = program.row_dim == -1 and all(len(shape) == 1 for shape in shapes)
    return local and len(shapes) <= most


MEANS = [
    (name, structure)
    for structure in TWINS
    for name in MEAN
    if structure != "index from the left" and _is_quadratic_size(STRUCTURES[structure].twin(), name)
]
QUICK = (
    "plain",
    "point with a density",
    "factor outside the plate",
    "nested scales",
    "point of an auxiliary draw",
)


def _cases(names: Any, structures: Any, quick: int) -> list[Any]:
    """(estimator, structure); all but the first `quick` estimators on QUICK structures are slow."""
    return [
        pytest.param(n, s, marks=[] if s in QUICK and n in names[:quick] else pytest.mark.slow)
        for s in structures
        for n in names
    ]


def _estimator(name: str) -> Any:
    estimator = getattr(estimators, name)().double().eval()
    needs_two = estimator.min_particles == 2 or estimator.target != "ELBO"
    estimator.num_particles = 2 if needs_two else 1
    for buffer in estimator.buffers():
        buffer.fill_(0.7)
    return estimator


def _objective(estimator: Any, log_w: Tensor) -> Tensor:
    """The objective of log-weights, (K, B) -> (B,)."""
    if estimator.target == "exp CUBO":
        return -((estimator.n * (log_w - estimator.average())).exp() / estimator.n).mean(0)
    return FORMULAS[estimator.target](log_w, estimator)


def _log_w(program: Structured, pair: Any, x: Tensor, case: Any, K: int) -> tuple[Tensor, Tensor]:
    """Log-weights (K, B) and the log-probability of a case."""
    terms = [program.log_terms(*pair, x, {n: v[k] for n, v in case.items()}) for k in range(K)]
    return torch.stack([t.log_p - t.log_q for t in terms]), sum(t.log_mass for t in terms)


def _log_evidence(program: Structured) -> Tensor:
    """log E_q exp w of a structure of bits: log p(x) per row, of the tempered program if it is."""
    model, guide, _ = program.programs()
    x = X[: program.rows]
    parts = [_log_w(program, (model, guide), x, case, 1) for case in program.cases(1)]
    return torch.stack([w[0] + m for w, m in parts]).logsumexp(0)


def _check_exact(name: str, program: Structured) -> None:
    """E[gradient] and E[bound] are those of the formula, at fixed noise."""
    estimator, x = _estimator(name), X[: program.rows]
    K = estimator.num_particles
    model, guide, parameters = program.programs()
    if name == "ELBO":
        estimator.analytic_kl = False
    result = enumerate_expectation(estimator, model, guide, (x,), parameters, program.cases(K))
    bound, target = 0.0, torch.zeros(())
    for case in program.cases(K):
        log_w, log_mass = _log_w(program, (model, guide), x, case, K)
        objective = _objective(estimator, log_w).sum() * program.ratio
        target = target - log_mass.exp() * objective
        formula = FORMULAS[estimator.target](log_w, estimator).sum() * program.ratio
        bound += float((log_mass.exp() * formula).detach())
    _require_value(estimator, program, result.bound, bound)
    torch.testing.assert_close(
        result.gradient, flat_gradient(target, parameters), rtol=1e-8, atol=1e-9
    )


def _require_value(estimator: Any, program: Structured, bound: float, formula: float) -> None:
    """E[bound] is that of the formula, and no more than the evidence if it is a bound."""
    assert bound == pytest.approx(formula, rel=1e-9, abs=1e-9)
    if estimator.is_bound and not program.normals:
        assert bound <= float(_log_evidence(program).sum() * program.ratio) + 1e-9


def _check_at_fixed_draws(name: str, program: Structured) -> None:
    """E[gradient] is that of the paper's formula, with derivatives at fixed draws."""
    estimator, x = _estimator(name), X[: program.rows]
    K = estimator.num_particles
    model, guide, parameters = program.programs()
    result = enumerate_expectation(estimator, model, guide, (x,), parameters, program.cases(K))
    bound, target = 0.0, torch.zeros(())
    for case in program.cases(K):
        terms = []
        for k in range(K):
            values = Values({n: v[k] for n, v in case.items()}, program.normals, fixed=True)
            terms.append(program.log_terms(model, guide, x, {}, values))
        p, q, density = (
            torch.stack([getattr(t, part) for t in terms]) for part in ("log_p", "log_q", "density")
        )
        mass = sum(t.log_mass for t in terms).detach().exp() * program.ratio
        value, surrogate = AT_FIXED_DRAWS[name](p, q, density, estimator)
        bound += float((mass * value.sum()).detach())
        target = target - mass * surrogate.sum()
    _require_value(estimator, program, result.bound, bound)
    torch.testing.assert_close(
        result.gradient, flat_gradient(target, parameters), rtol=1e-8, atol=1e-9
    )


def _wake_wake(p: Tensor, q: Tensor, density: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    weights = (p - q).exp() / (p - q).exp().sum(0)
    return (p - q).exp().mean(0).log(), (weights.detach() * (p + q)).sum(0)


def _thermodynamic(p: Tensor, q: Tensor, density: Tensor, each: Any) -> tuple[Tensor, Tensor]:
    """Eq. 12 of Masrani, Le, Wood (2019), the covariance over 1 - Σ v²."""
    w, value, surrogate = p - q, torch.zeros(()), torch.zeros(())
    for beta, after in zip(each.betas[:-1], each.betas[1:], strict=True):
        v = ((beta * w).exp() / (beta * w).exp().sum(0)).detach()
        f = (v * w.detach()).sum(0)
        covariance = (v * (w.detach() - f) * (beta * w + density)).sum(0) / (1 - (v**2).sum(0))
        value = value + (after - beta) * f
        surrogate = surrogate + (after - beta) * ((v * w).sum(0) + covariance)
    return value, surrogate


AT_FIXED_DRAWS = {"ReweightedWakeSleep": _wake_wake, "ThermodynamicELBO": _thermodynamic}


class RelaxedDraws(Messenger):
    """Make the given draws functions of parameters: of logits, at a fixed noise."""

    def __init__(self, name: str, draws: dict[str, Tensor], temperature: float | None) -> None:
        super().__init__()
        self.name, self.draws, self.temperature = name, draws, temperature

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.draws:
            return
        fn, value = msg["fn"], self.draws[msg["name"]]
        while not hasattr(fn, "logits") and not isinstance(fn, Normal | Delta):
            fn = fn.base_dist
        if isinstance(fn, Delta):
            value = fn.v
        elif isinstance(fn, Normal):
            value = fn.loc + fn.scale * ((value - fn.loc) / fn.scale).detach()
        elif self.name == "GumbelSoftmax":
            noise = (self.temperature * value.logit() - fn.logits).detach()
            value = ((fn.logits + noise) / self.temperature).sigmoid()
        else:
            value = value + fn.logits.sigmoid() - fn.logits.sigmoid().detach()
        msg["value"], msg["done"] = value, True


def _check_relaxed(name: str, program: Structured) -> None:
    """Value and gradient are those of the relaxed program, draw by draw."""
    estimator, x = _estimator(name), X[: program.rows]
    model, guide, parameters = program.programs()
    estimator.num_particles = 1
    estimator.analyze(model, guide, (x,), {})
    bit = (
        partial(RelaxedBernoulli, torch.tensor(estimator.temperature))
        if name == "GumbelSoftmax"
        else partial(Bernoulli, validate_args=False)
    )
    relaxed_model, relaxed_guide, same = program.programs(bit)
    for seed in range(3):
        torch.manual_seed(seed)
        particles = estimator.draw(model, guide, (x,), {})
        draws = {n: d.value[0].detach() for n, d in particles.site_draws.items()}
        handler = RelaxedDraws(name, draws, estimator.temperature)
        terms = program.log_terms(relaxed_model, relaxed_guide, x, {}, handler)
        expected = (terms.log_p - terms.log_q).sum()
        value = estimator.bound(particles).sum()
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            flat_gradient(estimator.surrogate(particles).sum(), parameters),
            flat_gradient(expected, same),
            rtol=1e-8,
            atol=1e-9,
        )


def _check_exact_in_the_mean(name: str, program: Structured) -> None:
    """The same in the mean over noise: its nodes are the rows of one batch.

    With one partition the thermodynamic objective is the ELBO, and its gradient unbiased.
    """
    estimator = _estimator(name)
    if name == "ThermodynamicELBO":
        estimator.betas, estimator.target = [0.0, 1.0], "ELBO"
    K = estimator.num_particles
    model, guide, parameters = program.programs()
    dims = [(n, k) for n, shape in program.normals.items() for k in range(K)]
    nodes, weights = np.polynomial.hermite_e.hermegauss({1: 60, 2: 120}.get(len(dims), 10))
    grid = torch.cartesian_prod(*[torch.tensor(nodes)] * len(dims)).reshape(-1, len(dims))
    mass = torch.cartesian_prod(*[torch.tensor(weights / weights.sum())] * len(dims))
    mass = mass.reshape(-1, len(dims)).prod(-1)
    for x in X[: program.rows]:
        case = {
            n: torch.stack([grid[:, dims.index((n, k))] for k in range(K)]) for n in program.normals
        }
        rows = x.expand(len(grid))
        estimator.analyze(model, guide, (rows,), {})
        with ForceDraws(case):
            particles = estimator.draw(model, guide, (rows,), {})
            gradient = flat_gradient((mass * estimator.surrogate(particles)).sum(), parameters)
            bound = float((mass * estimator.bound(particles)).sum().detach())
        log_w, _ = _log_w(program, (model, guide), rows, case, K)
        expected = (mass * FORMULAS[estimator.target](log_w, estimator)).sum()
        assert bound == pytest.approx(float(expected.detach()), rel=1e-7)
        if estimator.is_bound:
            assert bound <= float((mass * log_w[0].exp()).sum().log().detach()) + 1e-6
        torch.testing.assert_close(
            gradient, flat_gradient(expected, parameters), rtol=1e-5, atol=1e-5
        )
        assert float(particles.scale) == program.ratio


def _refusal(name: str, program: Structured) -> str:
    """Words of the reason for which an estimator must refuse a structure, or none."""
    if program.refused and not (name == "ELBO" and "factor" in program.refused):
        return program.refused
    if name == "NeuralBaseline" and program.row_dim is None:
        return "has a joint one"
    if name == "ReweightedWakeSleep" and ("s" in program.points):
        return "point 's' depends on parameters"
    if name in ("NeuralBaseline", *RELAXED) and not program.sites:
        return "the guide has none"
    if name in RELAXED and program.values:
        return "relaxes Bernoulli and OneHotCategorical"
    if name in RELAXED and program is STRUCTURES["scale and mask by a draw"]:
        return "not a smooth function"
    return ""


def _exact_or_refused(check: Any, name: str, program: Structured) -> None:
    if reason := _refusal(name, program):
        with pytest.raises(ValueError, match=reason):
            check(name, program)
    else:
        check(name, program)


@pytest.mark.parametrize(
    ("name", "structure"),
    _cases(SCORE, STRUCTURES, 1),
)
def test_score_function_gradient_is_exact_or_refused(name: str, structure: str) -> None:
    _exact_or_refused(_check_exact, name, STRUCTURES[structure])


@pytest.mark.parametrize(("name", "structure"), _cases(PATHWISE, TWINS, 2))
def test_pathwise_gradient_is_exact_or_refused(name: str, structure: str) -> None:
    _exact_or_refused(_check_exact, name, STRUCTURES[structure].twin())


@pytest.mark.parametrize(("name", "structure"), _cases(tuple(AT_FIXED_DRAWS), STRUCTURES, 2))
def test_gradient_at_fixed_draws_is_that_of_the_paper_or_refused(name: str, structure: str) -> None:
    _exact_or_refused(_check_at_fixed_draws, name, STRUCTURES[structure])


@pytest.mark.parametrize(("name", "structure"), _cases(RELAXED, STRUCTURES, 2))
def test_relaxation_is_that_of_the_relaxed_program_or_refused(name: str, structure: str) -> None:
    if (name, structure) != ("GumbelSoftmax", "observation mask"):  # `Program.bit` is not its prior
        _exact_or_refused(_check_relaxed, name, STRUCTURES[structure])


@pytest.mark.parametrize("structure", [s for s in STRUCTURES if s not in TEMPERED])
def test_mean_weight_is_the_evidence_of_the_model(structure: str) -> None:
    """The sum over the model's draws alone, without the guide."""
    program = STRUCTURES[structure]
    if program.refused or program.normals or program.points:
        return
    model, guide, _ = program.programs()
    x, cases = X[: program.rows], list(program.cases(1))
    log_p = torch.stack(
        [program.log_terms(model, guide, x, {n: v[0] for n, v in c.items()}).log_p for c in cases]
    )
    others = (program.rows - 1) / program.rows if program.row_dim is not None else 0.0
    expected = log_p.logsumexp(0) - others * math.log(len(cases))
    torch.testing.assert_close(_log_evidence(program), expected)


@pytest.mark.parametrize(
    ("name", "structure"),
    [pytest.param(*m, marks=[] if m[1] in QUICK else pytest.mark.slow) for m in MEANS],
)
def test_gradient_without_score_is_exact_in_the_mean(name: str, structure: str) -> None:
    _exact_or_refused(_check_exact_in_the_mean, name, STRUCTURES[structure].twin())


def _one_bit_refusal(name: str, structure: str) -> str:
    if structure == "point with a density":
        return "one Bernoulli site and no other"
    jumps = structure == "scale and mask by a draw" and name != "DisARM"
    return "not a smooth function" if jumps else ""


@pytest.mark.slow
@pytest.mark.parametrize("structure", ONE_BIT)
@pytest.mark.parametrize("name", BITS)
def test_gradient_of_one_bit_is_exact_at_five_standard_errors(name: str, structure: str) -> None:
    program, R, calls = STRUCTURES[structure], 200, 30
    model, guide, parameters = program.programs()
    x = X[: program.rows]
    estimator = getattr(estimators, name)().double()
    if reason := _one_bit_refusal(name, structure):
        with pytest.raises(ValueError, match=reason):
            estimator.loss(model, guide, x)
        return
    target = torch.zeros(())
    for case in program.cases(1):
        log_w, log_mass = _log_w(program, (model, guide), x, case, 1)
        target = target + log_mass.exp() * log_w.sum() * program.ratio
    expected = flat_gradient(target, parameters)
    pyro.set_rng_seed(0)
    draws = []
    for _ in range(calls):
        loss = -estimator.differentiable_loss(model, guide, x.repeat(R)) / R
        draws.append(flat_gradient(loss, parameters))
    sample = torch.stack(draws)
    error = sample.std(0) / calls**0.5
    assert ((sample.mean(0) - expected).abs() < 5 * error + 1e-9).all()


@pytest.mark.parametrize("name", MEAN[:4])
def test_support_that_moves_with_another_latent_has_the_exact_gradient(name: str) -> None:
    """z ~ LogNormal, u ~ Uniform(0, z) in both programs: E u = E z / 2, E u² = E z² / 3."""
    phi = torch.tensor([0.1, -0.7], requires_grad=True)
    x, theta = torch.tensor(0.8), torch.tensor(0.6, requires_grad=True)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", LogNormal(phi[0], phi[1].exp()))
            pyro.sample("u", Uniform(0.0, z))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", LogNormal(0.0, 1.0))
            u = pyro.sample("u", Uniform(0.0, z))
            pyro.sample("x", Normal(theta * u, 1.0), obs=x)

    variance = (2 * phi[1]).exp()
    mean, square = (phi[0] + variance / 2).exp(), (2 * phi[0] + 2 * variance).exp()
    kl = kl_divergence(Normal(phi[0], phi[1].exp()), Normal(0.0, 1.0))
    elbo = -(x**2 - x * theta * mean + theta**2 * square / 3) / 2 - kl
    expected = flat_gradient(elbo, [phi, theta])
    pyro.set_rng_seed(0)
    R, draws = 5_000, []
    estimator = getattr(estimators, name)(num_particles=1)
    if name == "DReGRenyi":
        estimator.alpha = 1.0
    for _ in range(10):
        loss = -estimator.differentiable_loss(model, guide, x.expand(R)) / R
        draws.append(flat_gradient(loss, [phi, theta]))
    sample = torch.stack(draws)
    assert ((sample.mean(0) - expected).abs() < 5 * sample.std(0) / 10**0.5).all()


def test_score_of_a_point_is_biased_in_sticking_the_landing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deliberately wrong: the derivative of log_density in parameters is taken for a score."""
    monkeypatch.setattr(Particles, "points_at_fixed_values", 0.0)
    with pytest.raises(AssertionError):
        _check_exact_in_the_mean("StickingTheLanding", STRUCTURES["point with a density"].twin())
