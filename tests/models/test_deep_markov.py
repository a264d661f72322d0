"""Deep Markov model against the linear chain, and its guide."""

import re
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor
from torch.distributions import Normal

from ppl_lvm.checks import check
from ppl_lvm.compiler import CompiledSVI
from ppl_lvm.data import load_data
from ppl_lvm.estimators import ELBO, IWAE
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides.recurrent import AmortizedRecurrent
from ppl_lvm.models.deep_markov import DeepMarkovModel, MarkovNormal
from ppl_lvm.models.linear_state_space import LinearStateSpace
from ppl_lvm.report.figures.diagnosis import pictures


def _linear(D: int = 1, P: int = 2) -> tuple[DeepMarkovModel, LinearStateSpace]:
    """Gate shut, constant noise, linear decoder: a linear state-space model, and that model."""
    torch.manual_seed(0)
    deep, linear = DeepMarkovModel(D, P, hidden=(), likelihood="gaussian"), LinearStateSpace(D, P)
    with torch.no_grad():
        step: Any = deep.transition
        step.gate.layers[-1].weight.zero_()
        step.gate.layers[-1].bias.fill_(-1e4)
        step.spread.weight.zero_()
        step.spread.bias.fill_(0.3)
        step.linear.weight.copy_(0.8 * torch.eye(D))
        drift = torch.nn.functional.softplus(torch.tensor(0.3)) + 1e-4
        layer: Any = deep.decoder.net.layers[0]
        linear.A.copy_(step.linear.weight)
        linear.C, linear.mu = layer.weight.detach().clone(), layer.bias.detach().clone()
        deep.start.zero_()
    linear.drift = drift.expand(D).clone()
    # Theirs starts a step earlier: z_1 ~ N(0, A² + q²).
    deep.start_scale = (0.8**2 + drift**2).sqrt().expand(D).clone()
    deep.decoder.scale = torch.full((P,), 0.7)
    linear.scale = (deep.decoder.scale.detach() ** 2 + deep.floor - linear.floor).sqrt()
    return deep, linear


def _data(N: int = 30, T: int = 6, P: int = 2) -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(N, T, P)
    x[1, 3:] = torch.nan
    x[2, 1, 0] = torch.nan
    return x


def test_markov_normal_density_is_the_product_of_its_steps() -> None:
    step: Any = DeepMarkovModel(2, 3).transition
    chain = MarkovNormal(torch.zeros(2), torch.ones(2), step, 5).expand([4])
    z = chain.rsample()
    assert z.shape == (4, 5, 2)
    log_p = Normal(0.0, 1.0).log_prob(z[:, 0]).sum(-1)
    for t in range(1, 5):
        mean, scale = step(z[:, t - 1])
        log_p = log_p + Normal(mean, scale).log_prob(z[:, t]).sum(-1)
    torch.testing.assert_close(chain.log_prob(z), log_p)


@pytest.mark.slow
def test_deep_markov_evidence_equals_the_linear_model_s_when_linear() -> None:
    """The bound stays below Kalman's evidence, and many particles come close to it."""
    deep, linear = _linear()
    x = _data(10, 4)
    exact = float(linear.log_evidence(x).mean().detach())
    guide = AmortizedRecurrent(deep, x, width=8)
    pyro.set_rng_seed(0)
    svi = CompiledSVI(deep, guide, pyro.optim.Adam(_only_the_guide), ELBO())
    for _ in range(200):
        svi.step(x)
    bounds = torch.tensor([-IWAE(200).loss(deep, guide, x) / len(x) for _ in range(8)])
    one = torch.tensor([-ELBO().loss(deep, guide, x) / len(x) for _ in range(40)])
    error = float(bounds.std() / len(bounds) ** 0.5)
    assert float(bounds.mean()) == pytest.approx(exact, abs=5 * error + 0.02)
    assert float(one.mean()) < exact + 5 * float(one.std() / len(one) ** 0.5)
    assert float(one.mean()) < float(bounds.mean())
    with torch.no_grad():  # the wrong twin: another chain
        linear.C = 2 * linear.C
    assert abs(float(linear.log_evidence(x).mean().detach()) - exact) > 5 * error + 0.02


def _only_the_guide(name: str) -> dict[str, float]:
    return {"lr": 0.05 if "encoder" in name else 0.0}


@pytest.mark.parametrize(
    ("likelihood", "categories"),
    [("bernoulli", None), pytest.param("categorical", 3, marks=pytest.mark.slow)],
)
def test_deep_markov_passes_check_and_trains_with_discrete_likelihoods(
    likelihood: str, categories: int | None
) -> None:
    x = (_data(8) > 0).float()
    model = DeepMarkovModel(2, 2, likelihood=likelihood, categories=categories)
    model.initialize(x)
    guide = AmortizedRecurrent(model, x, width=4)
    assert check(model, guide, x).ok
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), ELBO())
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_deep_markov_ignores_missing_values() -> None:
    deep, _ = _linear()
    x, z = _data(), torch.randn(30, 6, 1)
    held = poutine.condition(deep, {"z": z})

    def log_p(x: Tensor) -> Tensor:
        trace = poutine.trace(held).get_trace(x)
        trace.compute_log_prob()
        result: Tensor = trace.nodes["x"]["log_prob"]
        return result

    scale = (deep.decoder.scale**2 + deep.floor).sqrt()
    each = Normal(deep.decode(z), scale).log_prob(x.nan_to_num())
    torch.testing.assert_close(log_p(x), (each * ~x.isnan()).sum((1, 2)))
    assert (log_p(x) - log_p(x.nan_to_num()))[1].abs() > 0.1


def test_amortized_recurrent_reads_the_whole_sequence_and_its_missing_values() -> None:
    deep, _ = _linear()
    x = _data()
    encoder: Any = AmortizedRecurrent(deep, x, width=4).encoder
    late = x.clone()
    late[0, -1] += 1.0
    assert (encoder(x)[0, 0] - encoder(late)[0, 0]).abs() > 1e-6  # μ of the first step
    mean = x.clone()
    mean[1, 3:] = encoder.means  # a gap is not the mean
    assert (encoder(x)[1] - encoder(mean)[1]).abs().max() > 1e-4


def test_deep_markov_rejects_invalid_data_with_a_remedy() -> None:
    deep, _ = _linear()
    with pytest.raises(ValueError, match=r"sequences \(N, T, 2\), got \(3, 4\)"):
        deep(torch.randn(3, 4))

    def other(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", pyro.distributions.Normal(x.new_zeros(3), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"latents are z \(3,\).*Use AmortizedNormal"):
        AmortizedRecurrent(other, torch.randn(5, 4, 2))


@pytest.mark.slow
def test_deep_markov_run_has_diagnostics_figures_and_export() -> None:
    x = _data(24, 4)
    data = load_data(x.numpy(), missing="keep")
    model = DeepMarkovModel(1, hidden=(4,), width=4)
    run = fit(model, AmortizedRecurrent, data, num_steps=30, engine="eager")
    result = run.to_arviz(data, num_samples=8)
    assert result.posterior["z"].dims == ("chain", "draw", "data", "z_dim_0", "z_dim_1")
    assert result.posterior["z"].shape == result.prior["z"].shape == (1, 8, 24, 4, 1)
    assert result.log_likelihood["x"].shape == (1, 8, 24)
    assert np.array_equal(result.observed_data["x"].values, x.numpy(), equal_nan=True)
    diagnosis = run.diagnose(data, temperatures=3)
    for row in diagnosis.to_json():  # nothing failed: what cannot be said has a reason
        assert not re.match(r"\w*(Error|Exception):", row["why"]), row["why"]
    reason = {row["name"]: row["verdict"] for row in diagnosis.to_json()}
    for name in (
        "predictive check: p-value of the worst test quantity",
        "PIT of x: p-value of the least uniform column",
        "classifier two-sample test: accuracy",
        "simulation-based calibration, p-value",
    ):
        assert reason[name] != "unknown"
    shown = {picture.title for picture in pictures(diagnosis.details)}
    assert {"PIT", "Simulation-based calibration"} <= shown
