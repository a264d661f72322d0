"""Bounds of `fit` against exact values."""

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Categorical, Normal
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor
from torch.distributions import constraints

from ppl_lvm import fit
from ppl_lvm.data import load_data
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.runs.run import Run
from ppl_lvm.training.loop import Training
from ppl_lvm.training.options import TrainingOptions
from small_programs import Factor, FactorGuide, FixedDraw, Mean, MeanGuide, factor_data


def exact(run: Run, x: Tensor) -> Tensor:
    p = run.parameters()
    cov = torch.outer(p["w"], p["w"]) + p["s"] ** 2 * torch.eye(len(p["w"]))
    return torch.distributions.MultivariateNormal(p["b"], cov).log_prob(x)


def test_fit_approaches_the_maximum_likelihood() -> None:
    x = factor_data()
    schedule: dict[str, Any] = {
        "optimizer": "Adam(lr=0.03)",
        "schedule": "CosineAnnealingLR(T_max=600)",
    }
    run = fit(Factor(), FactorGuide(), x, num_steps=600, **schedule)
    centered = x - x.mean(0)
    # The posterior of this model is in the guide's family, so the bound can equal log p(x).
    gap = float(exact(run, x).mean()) - run.results["bound"]
    assert abs(gap) < 0.02 + 5 * run.results["bound_monte_carlo_error"]
    evidence = run.log_evidence(x, 200)
    error = 5 * evidence.monte_carlo_error + 1e-5
    assert abs(evidence.value - float(exact(run, x).mean())) < error
    normal = torch.distributions.MultivariateNormal(x.mean(0), centered.T @ centered / len(x))
    assert 0 < normal.log_prob(x).mean() - exact(run, x).mean() < 0.05


def test_mini_batch_gradients_average_to_the_full_gradient() -> None:
    """The mean over the batches of an epoch, of equal size."""
    x = torch.linspace(-1, 3, 40)

    def gradients(batch_size: int, steps: int) -> tuple[float, dict[str, Tensor]]:
        pair = ModelGuidePair(Mean(), MeanGuide(), FixedDraw())
        pair.materialize_parameters(x[:batch_size])
        options = TrainingOptions(num_steps=steps, batch_size=batch_size, optimizer="SGD(lr=1.0)")
        training = Training(pair, load_data(x), None, options)
        start = {n: t.detach().clone() for n, t in pair.unconstrained_parameters.items()}
        totals = {n: torch.zeros_like(t) for n, t in start.items()}
        for _ in range(steps):
            training.step()
            for name, leaf in pair.unconstrained_parameters.items():
                totals[name] += (start[name] - leaf.detach()) / steps
                leaf.data.copy_(start[name])
        return float(np.mean(training.history["bound"])), totals

    whole, full = gradients(40, 1)
    part, mean = gradients(8, 5)
    assert part == pytest.approx(whole, rel=1e-5)
    for name in full:
        assert torch.allclose(mean[name], full[name], rtol=1e-4, atol=1e-6), name


def test_bound_is_per_row_for_every_number_of_rows() -> None:
    for n in (10, 1000):
        run = fit(Mean(), MeanGuide(), torch.zeros(n), num_steps=1, objective=FixedDraw())
        loss = FixedDraw().loss_and_grads(Mean(), MeanGuide(), torch.zeros(n))
        assert run.history["bound"][0] == pytest.approx(-loss / n, rel=1e-6)


def test_fit_takes_the_steps_of_pyro_svi() -> None:
    x = factor_data(64)
    torch.manual_seed(0)
    model, guide = Factor(), FactorGuide()
    run = fit(model, guide, x, num_steps=20, optimizer="SGD(lr=0.1)", objective=FixedDraw())
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1 / 64}), FixedDraw())
    bounds = [-svi.step(x) / 64 for _ in range(20)]
    assert np.allclose(run.history["bound"], bounds, rtol=1e-5)
    assert torch.allclose(run.parameters()["w"], model.w.detach(), rtol=1e-4, atol=1e-6)
    assert torch.allclose(run.parameters()["spread"], guide.spread.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_global_latent_with_mini_batches_reaches_the_exact_posterior() -> None:
    x = torch.linspace(-1, 3, 400)
    run = fit(Mean(), MeanGuide(), x, num_steps=3000, batch_size=20, optimizer="Adam(lr=0.01)")
    # The exact posterior is N(Σx/(N+1), 1/(N+1)); wrong scaling would give 1/(B+1) = 1/21.
    assert float(run.parameters()["scale"]) == pytest.approx((1 / 401) ** 0.5, rel=0.3)
    assert float(run.parameters()["loc"]) == pytest.approx(float(x.sum()) / 401, abs=0.1)


@pytest.mark.slow
def test_renyi_bound_of_a_mini_batch_is_scaled_outside_the_logarithm() -> None:
    """Pyro scales inside the logarithm, which is not a bound; ours stays below log p(x)."""
    x = factor_data(20)
    run = fit(
        Factor(),
        FactorGuide(),
        x,
        objective="RenyiELBO(alpha=0, num_particles=20)",
        batch_size=10,
        num_steps=1,
        optimizer="SGD(lr=0.0)",
        engine="eager",
    )
    assert run.results["bound"] < float(exact(run, x).mean()) + 0.02


@pytest.mark.slow
def test_upper_bound_is_reported_with_its_sign() -> None:
    """The estimate of CUBO is near log p(x), not near -log p(x)."""
    x = factor_data(100)
    run = fit(Factor(), FactorGuide(), x, objective="CUBO(num_particles=200)", num_steps=300)
    assert abs(run.results["bound"] - float(exact(run, x).mean())) < 0.5


def test_enumerated_sites_are_marginalized_by_default() -> None:
    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
        m = pyro.param("m", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Categorical(w), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(m[z], 1.0), obs=x)

    x = torch.randn(30)
    run = fit(model, lambda x: None, x, num_steps=1, optimizer="SGD(lr=0.0)")
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.3, 0.7])),
        torch.distributions.Normal(torch.tensor([-1.0, 1.0]), 1.0),
    )
    truth = float(mixture.log_prob(x).mean())
    assert run.results["bound"] == pytest.approx(truth, abs=1e-5)
    assert run.results["log_evidence"] == pytest.approx(truth, abs=1e-5)
    assert isinstance(run.pair.objective, TraceEnum_ELBO)
    codes = run.encode(x)["z"]
    assert codes.shape == (30, 2)
    assert torch.allclose(codes.sum(1), torch.ones(30), atol=1e-6)
