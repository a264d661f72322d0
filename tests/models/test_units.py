"""Fits in other units take the same steps.

A bound of a ⊙ x + b differs from that of x by -Σ log |a|.
"""

import copy
import importlib
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Normal, constraints
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.nn import PyroModule
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import biject_to

from ppl_lvm.guides import auto_guide
from ppl_lvm.nn.units import ColumnUnits, NormalInUnits, column_units

models: Any = importlib.import_module("ppl_lvm.models")
pytestmark = pytest.mark.usefixtures("doubles")

ELBO = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
A, B = torch.tensor([1e-4, 1e4, 3.0]).double(), torch.tensor([1.0, 1e8, -3e4]).double()
NETWORK: dict[str, Any] = {"likelihood": "gaussian", "latent": 2, "hidden": (4,)}
# model -> settings, and the columns of the response (all columns: None).
CASES: dict[str, dict[str, Any]] = {
    "BayesianGaussianMixture": {"components": 2},
    "ConditionalVAE": {**NETWORK, "given": 1},
    "DeepMarkovModel": {"hidden": (4,)},
    "Diffusion": {"steps": 2, "hidden": (4,)},
    "FactorAnalysis": {},
    "Gaussian": {"observed": 3},
    "GaussianMixture": {"components": 2},
    "GaussianMixtureVAE": {**NETWORK, "components": 2},
    "HiddenMarkovModel": {"states": 2},
    "HierarchicalRegression": {},
    "HierarchicalVAE": {**NETWORK, "latent": (2, 2)},
    "LinearStateSpace": {},
    "MixtureOfPPCA": {"components": 2},
    "NormalizingFlow": {"layers": 2, "hidden": (4,)},
    "PPCA": {},
    "SemiSupervisedVAE": {**NETWORK, "classes": 2},
    "VAE": NETWORK,
}
WITHOUT = {  # counts and bits; and a prior in units that the user gives
    *("BernoulliVAE", "FactorModel", "LatentDirichletAllocation", "ProdLDA"),
    "RandomEffects",
}
ONE_UNIT = {"MixtureOfPPCA", "PPCA"}  # one noise for all columns: one factor for all, any shifts
SLOW = {
    "BayesianGaussianMixture",
    "GaussianMixtureVAE",
    "SemiSupervisedVAE",
    "Diffusion",
    "DeepMarkovModel",
}
SLOW |= {"HierarchicalVAE", "NormalizingFlow", "ConditionalVAE", "MixtureOfPPCA", "PPCA"}
SEQUENCES = {"DeepMarkovModel", "HiddenMarkovModel", "LinearStateSpace"}


def _rows(name: str) -> tuple[Tensor, Tensor, float]:
    """Rows x, the same in other units, and Σ log |a| over the columns with a density."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(24, 2, generator=draw) @ torch.randn(2, 3, generator=draw)
    x = x + 0.5 * torch.randn(24, 3, generator=draw)
    a, b = (torch.full((3,), 1e4), B) if name in ONE_UNIT else (A, B)
    y, densities = a * x + b, a
    if name in SEQUENCES:
        return x.view(6, 4, 3), y.view(6, 4, 3), 4 * a.log().sum().item()
    if name == "HierarchicalRegression":
        x[:, 0] = y[:, 0] = torch.arange(24) % 3
        densities = a[-1:]
    if name == "ConditionalVAE":
        densities = a[1:]
    return x, y, densities.log().sum().item()


def _train(name: str, x: Tensor, steps: int = 6, **settings: Any) -> tuple[Tensor, Any]:
    """Bounds of all rows before each step, in nats per row, and the model."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    model = getattr(models, name)(**CASES[name], **settings)
    model.initialize(x)
    svi = SVI(model, auto_guide(model, x), Adam({"lr": 0.02}), ELBO)
    return torch.tensor([-svi.step(x) for _ in range(steps)]) / len(x), model


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
def test_every_model_takes_the_same_steps_in_any_units(name: str) -> None:
    x, y, constant = _rows(name)
    one, model = _train(name, x)
    two, other = _train(name, y)
    # The Gaussian starts at a gradient of 0, where Adam's steps are rounding.
    torch.testing.assert_close(
        two + constant, one, atol=1e-3 if name == "Gaussian" else 1e-8, rtol=0
    )
    assert (one[-1] - one[0]).abs() > 1e-3
    if hasattr(model, "decoder") and name in {"VAE", "GaussianMixtureVAE", "HierarchicalVAE"}:
        z = torch.randn(5, 2)
        torch.testing.assert_close(other.decode(z), A * model.decode(z) + B)
    if hasattr(model, "impute"):
        x[3, 1] = y[3, 1] = torch.nan
        a = torch.full((3,), 1e4) if name in ONE_UNIT else A
        torch.testing.assert_close(other.impute(y)[3], a * model.impute(x)[3] + B)


def test_every_model_has_units_or_a_reason() -> None:
    assert set(models.__all__) == CASES.keys() | WITHOUT
    assert not CASES.keys() & WITHOUT


@pytest.mark.parametrize("name", ["FactorAnalysis", "GaussianMixture", "LinearStateSpace"])
def test_without_units_the_steps_differ(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ColumnUnits, "set_from", lambda self, x: None)
    x, y, constant = _rows(name)
    one, two = (_train(name, rows, 3)[0] for rows in (x, y))
    assert (two + constant - one)[-1].abs() > 0.01


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("FactorAnalysis", {}),
        ("PPCA", {}),
        *(("GaussianMixture", {"covariance": c}) for c in ("full", "tied", "diag")),
        ("MixtureOfPPCA", {}),
        ("HiddenMarkovModel", {}),
        ("LinearStateSpace", {}),
    ],
)
def test_every_iteration_of_em_is_the_same_in_any_units(
    name: str, settings: dict[str, Any]
) -> None:
    x, y, constant = _rows(name)
    bounds = []
    for rows in (x, y):
        torch.manual_seed(0)
        model = getattr(models, name)(**CASES[name], floor=1e-2, **settings)
        model.initialize(rows)
        state, values = model.em_state(), []
        for _ in range(6):
            statistics, log_likelihood = model.e_step(state, rows)
            state = model.m_step(state, statistics)
            values.append(log_likelihood / len(rows))
        bounds.append(torch.stack(values))
    torch.testing.assert_close(bounds[1] + constant, bounds[0], atol=1e-8, rtol=0)
    assert bounds[0][-1] > bounds[0][0]


def test_random_effects_in_other_units_with_priors_in_them() -> None:
    x = torch.stack([torch.randn(8), torch.rand(8) + 0.5], -1)
    bounds = []
    for a in (1.0, 1e4):
        torch.manual_seed(0)
        pyro.clear_param_store()
        model = models.RandomEffects(mean_scale=5 * a, spread_scale=5 * a)
        svi = SVI(model, auto_guide(model, a * x), Adam({"lr": 0.02}), ELBO)
        bounds.append([-svi.step(a * x) for _ in range(4)])
    shift = 8 * torch.tensor(1e4).log().item()
    assert bounds[1] == pytest.approx([value - shift for value in bounds[0]], abs=1e-8)


def test_column_units_of_constant_and_missing_values_and_large_centers() -> None:
    nan = torch.nan
    x = torch.tensor([[1.0, 5.0, nan, 0.0], [3.0, 5.0, nan, 4.0], [nan, 5.0, nan, 8.0]])
    center, scale = column_units(x)
    assert center.tolist() == [2.0, 5.0, 0.0, 4.0]
    mean = ((1 + 32 / 3) / 4) ** 0.5
    assert scale.tolist() == pytest.approx([1.0, mean, mean, (32 / 3) ** 0.5])
    times = 1.7e9 + torch.arange(10.0, dtype=torch.float64)[:, None]  # seconds, in doubles
    assert column_units(times)[1].item() == pytest.approx(torch.arange(10.0).std(correction=0))
    noise = (1e4 + 1e-4 * torch.randn(50, 1)).float()  # rounding alone
    assert column_units(noise)[1].item() == 1.0
    assert column_units(x, common=True)[1].unique().numel() == 1


class _Parameters(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.units = ColumnUnits(3)
        self.mu = self.units.location(torch.zeros(2, 3))
        self.W = self.units.rows(torch.ones(3, 2))
        self.s = self.units.spread(torch.ones(3))
        self.L = self.units.rows(torch.eye(3), constraints.lower_cholesky)


def test_parameters_in_units_keep_their_coordinates_when_units_are_set_copied_or_moved() -> None:
    model: Any = _Parameters()
    leaves = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.units.set_from(torch.stack([B - A, B + A]))
    for program in (model, copy.deepcopy(model), copy.deepcopy(model).double()):
        torch.testing.assert_close(program.mu[1], B)
        torch.testing.assert_close(program.W[:, 1], A)
        torch.testing.assert_close(program.s, A)
        torch.testing.assert_close(program.L, A.diag())
        for name, leaf in program.named_parameters():
            assert torch.equal(leaf, leaves[name])
    other = copy.deepcopy(model)
    other.units.scale.fill_(2.0)
    assert other.s.tolist() == [2.0] * 3
    torch.testing.assert_close(model.s, A)
    loaded: Any = _Parameters()
    loaded.load_state_dict(model.state_dict())
    torch.testing.assert_close(loaded.L, model.L)
    model.mu = torch.stack([B, B + A])
    torch.testing.assert_close(
        model.mu_unconstrained.detach(), torch.tensor([[0.0], [1.0]]) * torch.ones(3)
    )


def test_normal_in_units_is_a_normal_with_a_standard_unconstrained_coordinate() -> None:
    fn, plain = NormalInUnits(B, A).expand([2, 3]).to_event(2), Normal(B, A).expand([2, 3])
    value = B + 2 * A * torch.ones(2, 1)
    torch.testing.assert_close(fn.log_prob(value), plain.log_prob(value).sum())
    torch.testing.assert_close(biject_to(fn.support).inv(value), 2 * torch.ones(2, 3))


def test_predictions_of_a_regression_are_in_the_units_of_the_response() -> None:
    x, y, _ = _rows("HierarchicalRegression")
    drawn = []
    for rows in (x, y):
        model = models.HierarchicalRegression()
        model.initialize(rows)
        torch.manual_seed(0)
        drawn.append(poutine.trace(poutine.uncondition(model)).get_trace(rows).nodes["y"]["value"])
    torch.testing.assert_close(drawn[1], A[-1] * drawn[0] + B[-1])
