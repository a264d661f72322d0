"""Multilevel regression against its exact marginal given the spreads."""

from typing import Any

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.ops.stats import effective_sample_size
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import GlobalNormal
from ppl_lvm.models.hierarchical_regression import HierarchicalRegression

pytestmark = pytest.mark.usefixtures("doubles")


@pytest.fixture
def rows() -> Tensor:
    return load_data("grouped(n=40, groups=3)").tensors[0]


def _marginal(model: HierarchicalRegression, x: Tensor, tau: Tensor, sigma: float) -> float:
    """log p(y | τ, σ), β and m integrated out: y is normal."""
    z = (x[:, 1:] - model.center) / model.unit
    design = torch.cat([torch.ones(len(z), 1), z[:, :-1]], -1)  # (N, J)
    common = design @ (2.5**2 * design.mT)
    local = (design * tau.square()) @ design.mT * (x[:, :1] == x[:, 0])
    covariance = common + local + sigma**2 * torch.eye(len(x))
    log_p = MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(z[:, -1])
    return (log_p - len(x) * model.unit[-1].log()).item()  # of y in the data's units


@pytest.mark.parametrize("centered", [False, True])
def test_hierarchical_regression_given_spreads_equals_the_normal_model(
    rows: Tensor, centered: bool
) -> None:
    """Then the joint is the exponential of a quadratic, whose integral is known."""
    model = HierarchicalRegression(centered=centered)
    model.initialize(rows)
    tau, sigma = torch.tensor([0.6, 0.3]), 0.4
    name = "effects" if centered else "offsets"
    conditioned = {"spread": tau, "noise": torch.tensor(sigma)}
    fixed = poutine.condition(model, conditioned)

    def log_joint(u: Tensor) -> Tensor:
        latents = {"mean": u[:2], name: u[2:].reshape(3, 2)}
        trace = poutine.trace(poutine.condition(fixed, latents)).get_trace(rows)
        trace.compute_log_prob()
        left = sum(trace.nodes[k]["log_prob"].sum() for k in conditioned)
        return trace.log_prob_sum() - left

    u = torch.zeros(8, requires_grad=True)
    value = log_joint(u)
    gradient = torch.autograd.grad(value, u)[0]
    curvature = torch.autograd.functional.hessian(log_joint, u)
    # by its value at the top and its curvature
    top = value - 0.5 * gradient @ torch.linalg.solve(curvature, gradient)
    log_det = torch.linalg.slogdet(-curvature / (2 * torch.pi)).logabsdet
    exact = (top - 0.5 * log_det).item()
    assert exact == pytest.approx(_marginal(model, rows, tau, sigma), rel=1e-9)


@pytest.mark.slow
def test_hierarchical_regression_fit_recovers_lines_and_shrinks_small_groups() -> None:
    data = load_data("grouped(n=150, groups=6, seed=1)")
    x = data.tensors[0]
    run = fit(HierarchicalRegression, GlobalNormal, data, num_steps=400, optimizer="Adam(lr=0.03)")
    model: Any = run.model
    guide: Any = run.guide
    m, tau = guide.mean_loc.detach(), guide.spread_loc.detach().exp()
    beta = model.coefficients(m + tau * guide.offsets_loc.detach())
    group = x[:, 0].long()
    for g in range(6):
        local = x[group == g]
        design = torch.cat([torch.ones(len(local), 1), local[:, 1:2]], -1)
        if len(local) > 20:  # where a group has many rows its line is its own least squares
            alone = torch.linalg.lstsq(design, local[:, 2]).solution
            torch.testing.assert_close(beta[g], alone, atol=0.15, rtol=0)


def _quantities(model: HierarchicalRegression, drawn: dict[str, Tensor]) -> Tensor:
    """Quantities of interest, one per column: m, β, σ and log τ, of draws (S, …)."""
    m, tau, sigma = drawn["mean"], drawn["spread"], drawn["noise"]
    beta = drawn["effects"] if model.centered else m[:, None] + tau[:, None] * drawn["offsets"]
    return torch.cat([m, beta.flatten(1), sigma[:, None], tau.log()], -1)


def _of_a_guide(model: HierarchicalRegression, guide: Any, x: Tensor) -> Tensor:
    """`_quantities` of 4,000 draws of a fitted guide."""
    run = fit(
        model,
        guide,
        x,
        objective="ELBO(num_particles=8)",
        num_steps=600,
        optimizer="Adam(lr=0.04)",
        schedule="CosineAnnealingLR(T_max=600)",
    )
    with run.pair.scope(), torch.no_grad(), pyro.plate("draws", 4000, dim=-2):
        pyro.set_rng_seed(1)
        nodes = poutine.trace(run.guide).get_trace(x).nodes
    drawn = {k: v["value"] for k, v in nodes.items() if v["type"] == "sample"}
    return _quantities(model, {k: v.squeeze(1) for k, v in drawn.items() if v.shape[:1] == (4000,)})


@pytest.mark.slow
def test_hierarchical_regression_guide_agrees_with_nuts_and_mean_field_does_not() -> None:
    """Means and standard deviations of 21 quantities, within five of the chain's own errors."""
    x = load_data("grouped(n=120, groups=8)").tensors[0]
    model = HierarchicalRegression(centered=True)  # every group has rows enough
    model.initialize(x)
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model, max_tree_depth=6), 200, warmup_steps=100, disable_progbar=True)
    mcmc.run(x)
    chain = _quantities(model, mcmc.get_samples())  # (S, Q)
    mean, deviation = chain.mean(0), chain.std(0)
    square = (chain - mean).square()
    error = deviation / effective_sample_size(chain[None]).sqrt()
    of_deviation = square.std(0) / effective_sample_size(square[None]).sqrt() / (2 * deviation)

    good = _of_a_guide(model, AutoMultivariateNormal, x)
    assert ((good.mean(0) - mean).abs() < 5 * error).all()
    assert ((good.std(0) - deviation).abs() < 5 * of_deviation).all()

    # A wrong twin: not centred, m and η move against each other, which a mean field cannot follow.
    apart = HierarchicalRegression(centered=False)
    apart.initialize(x)
    narrow = _of_a_guide(apart, AutoNormal, x)
    assert ((narrow.std(0) - deviation)[:2] < -5 * of_deviation[:2]).any()


@pytest.mark.parametrize("centered", [False, True])
def test_hierarchical_regression_joint_density_equals_scipy(rows: Tensor, centered: bool) -> None:
    model = HierarchicalRegression(centered=centered)
    model.initialize(rows)
    m, tau, sigma = np.array([0.4, -1.0]), np.array([0.7, 0.2]), 0.5
    eta = np.linspace(-1, 1.5, 6).reshape(3, 2)
    beta = m + tau * eta
    z = ((rows[:, 1:] - model.center) / model.unit).numpy()
    local = beta[rows[:, 0].long().numpy()]
    exact = (
        scipy.stats.norm(0, 2.5).logpdf(m).sum()
        + scipy.stats.halfnorm.logpdf(tau).sum()
        + scipy.stats.halfnorm.logpdf(sigma)
        + (
            scipy.stats.norm(m, tau).logpdf(beta) if centered else scipy.stats.norm.logpdf(eta)
        ).sum()
        + scipy.stats.norm(local[:, 0] + local[:, 1] * z[:, 0], sigma).logpdf(z[:, 1]).sum()
        - len(rows) * model.unit[-1].log().item()
    )
    latents = {"mean": m, "spread": tau, "noise": sigma}
    latents |= {"effects": beta} if centered else {"offsets": eta}
    conditioned = poutine.condition(model, {k: torch.as_tensor(v) for k, v in latents.items()})
    result = poutine.trace(conditioned).get_trace(rows).log_prob_sum().item()
    assert result == pytest.approx(exact, rel=1e-12)


def test_hierarchical_regression_coefficients_are_in_data_units(rows: Tensor) -> None:
    model = HierarchicalRegression()
    model.initialize(rows)
    beta = torch.randn(3, 2)
    line = model.coefficients(beta)
    z = (rows[:, 1:] - model.center) / model.unit
    group = rows[:, 0].long()
    inside = beta[group, 0] + beta[group, 1] * z[:, 0]
    outside = line[group, 0] + line[group, 1] * rows[:, 1]
    torch.testing.assert_close(inside * model.unit[-1] + model.center[-1], outside)


@pytest.mark.slow
def test_hierarchical_regression_rejects_new_groups_and_serves_groups_without_rows(
    rows: Tensor,
) -> None:
    def fitted(**sizes: Any) -> Any:
        return fit(HierarchicalRegression(**sizes), None, rows, num_steps=20)

    new = rows[:5].clone()
    new[3, 0] = 3
    with pytest.raises(ValueError, match=r"Row 3 is of group 3.*Build the model with groups=4"):
        fitted().log_evidence(new)
    for wrong in (-1.0, 0.5):
        new[2, 0] = wrong
        with pytest.raises(ValueError, match=r"first column must be the group.*row 2 has"):
            fitted(groups=5, predictors=1).log_evidence(new)
    new[2, 0] = 4
    assert fitted(groups=5).log_evidence(new).per_row.isfinite().all()
