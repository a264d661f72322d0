"""Diffusion: one-step estimates, log-weights of the chain, draws.

With a denoiser that is linear in z every term of the bound is a Gaussian integral. They are done
here without the model's formulas: by conditioning joint normals, and three Gauss-Hermite nodes,
which integrate squares exactly.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy.stats import kstest
from torch import Tensor, nn

from ppl_lvm.checks import check
from ppl_lvm.estimators import ELBO, IWAE
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.models.diffusion import Diffusion
from ppl_lvm.nn.noise_schedule import StratifiedTimes
from ppl_lvm.particles import log_weights
from ppl_lvm.runs.directory import load_run

NODES, WEIGHTS = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(3))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


class Linear(nn.Module):
    """E[ε | z] for u ~ N(center, spread²)."""

    def __init__(self, center: float = 0.3, spread: float = 0.8) -> None:
        super().__init__()
        self.center = nn.Parameter(torch.tensor(center, dtype=torch.float64))
        self.spread = nn.Parameter(torch.tensor(spread, dtype=torch.float64))

    def forward(self, z: Tensor, gamma: Tensor) -> Tensor:
        gamma = gamma.unsqueeze(-1)
        alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        variance = (alpha * self.spread) ** 2 + sigma**2
        return sigma * (z - alpha * self.center) / variance


class DropsTheWeight(Diffusion):
    """A wrong twin: every step has the same weight, as in the simplified loss."""

    def steps_cost(self, u: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        gamma = self.process.gamma(((t * self.steps).floor() + 1) / self.steps)
        z = self.process.noised(u, noise, gamma)
        return 0.5 * (noise - self.noise(z, gamma)).square().sum(-1)


def linear(steps: int = 4, kind: type[Diffusion] = Diffusion, **settings: Any) -> Diffusion:
    """A diffusion of one column with a linear denoiser and a nonlinear schedule."""
    model = kind(1, steps=steps, denoiser=Linear(), **settings).double()
    with torch.no_grad():
        model.process.first.fill_(11.0)
        model.process.log_span.fill_(math.log(5.0))
        model.process.increments.copy_(torch.linspace(-0.7, 0.9, 10))
        model.process.means.fill_(2.0)
        model.process.unit.fill_(1.5)
    return model


def normal_log_prob(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((x - mean) ** 2 / variance + variance.log() + math.log(2 * math.pi))


def kl(mean: Tensor, variance: Tensor, other: Tensor, its_variance: Tensor) -> Tensor:
    ratio = variance / its_variance
    return 0.5 * (ratio + (mean - other) ** 2 / its_variance - 1 - ratio.log())


def exact_bound(model: Diffusion, x: Tensor) -> Tensor:
    """The T-step bound of rows `x` (N,), by conditioning joint normals: (N,)."""
    process = model.process
    gamma = process.grid()
    a, s = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
    u = ((x - process.means) / process.unit).unsqueeze(-1)  # (N, 1), nodes to the right
    z = a[0] * u + s[0] * NODES
    sd = process.unit * s[0] / a[0]
    result = normal_log_prob(x.unsqueeze(-1), process.means + process.unit * z / a[0], sd**2)
    one = torch.ones(())
    total = result @ WEIGHTS - kl(a[-1] * u, s[-1] ** 2, 0 * one, one).squeeze(-1)
    for i in range(1, len(gamma)):
        z = a[i] * u + s[i] * NODES
        believed = (z - s[i] * model.noise(z.unsqueeze(-1), gamma[i]).squeeze(-1)) / a[i]
        covariance = a[i] / a[i - 1] * s[i - 1] ** 2  # of z_i-1 and z_i given x
        gain, variance = covariance / s[i] ** 2, s[i - 1] ** 2 - covariance**2 / s[i] ** 2
        means = [a[i - 1] * v + gain * (z - a[i] * v) for v in (u, believed)]
        total = total - kl(means[0], variance, means[1], variance) @ WEIGHTS
    return total


def mean_estimate(model: Diffusion, x: Tensor, times: Tensor) -> Tensor:
    """Mean estimate of the training program over these times and all noise: (N,)."""
    shape = (len(x), len(times), len(NODES))
    t = times[:, None].expand(shape).reshape(-1)
    noise = NODES.expand(shape).reshape(-1, 1)
    rows = x[:, None, None].expand(shape).reshape(-1, 1)
    model.train()
    conditioned = poutine.condition(model, data={"t": t, "noise": noise})
    nodes = poutine.trace(conditioned).get_trace(rows).nodes
    scored = sum(nodes[n]["fn"].log_prob(nodes[n]["value"]) for n in ("steps", "x"))
    return (scored.reshape(shape) @ WEIGHTS).mean(-1)


def middles(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


X = torch.tensor([1.1, 2.0, 3.9], dtype=torch.float64)


@pytest.mark.parametrize("kind", [Diffusion, DropsTheWeight])
def test_diffusion_one_step_bound_and_gradient_are_unbiased_for_the_chain(
    kind: type[Diffusion],
) -> None:
    model = linear(kind=kind)
    exact, estimate = exact_bound(model, X), mean_estimate(model, X, middles(4))
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(total.sum(), parameters) for total in (exact, estimate)]
    if kind is DropsTheWeight:
        assert not torch.allclose(estimate, exact, rtol=0.01)
        return
    torch.testing.assert_close(estimate, exact, rtol=1e-10, atol=1e-10)
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_diffusion_chain_has_the_closed_form_bound() -> None:
    model = linear().eval()
    guide = model.default_guide()
    rows = X[:, None].repeat_interleave(2000, 0)
    estimator = ELBO(1)
    with torch.no_grad():
        values = estimator.bound(estimator.draw(model, guide, (rows,), {})).reshape(3, -1)
    error = values.std(1) / math.sqrt(2000)
    assert ((values.mean(1) - exact_bound(model, X)).abs() < 5 * error).all()


def exact_log_evidence(model: Diffusion, x: Tensor) -> Tensor:
    """log p(x) of the chain: every step is linear, so all is normal."""
    process = model.process
    gamma = process.grid()
    mean, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for i in range(len(gamma) - 1, 0, -1):
        ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        (at_0, at_1), sd = model._step(ends, gamma[i - 1], gamma[i])
        slope = at_1 - at_0
        mean, variance = at_0 + slope * mean, slope**2 * variance + sd**2
    noise = (0.5 * gamma[0]).exp()
    scale = process.unit / torch.sigmoid(-gamma[0]).sqrt()
    total = scale**2 * variance + (process.unit * noise) ** 2
    return normal_log_prob(x, process.means + scale * mean, total)


def test_diffusion_chain_weights_average_to_the_evidence() -> None:
    model = linear(steps=3).eval()
    log_w = log_weights(model, model.default_guide(), X[:, None], num_particles=5000)
    ratio = (log_w - exact_log_evidence(model, X).detach()).exp()  # (K, N)
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / math.sqrt(5000)).all()
    assert (exact_bound(model, X) < exact_log_evidence(model, X)).all()


def test_diffusion_category_probabilities_sum_to_one() -> None:
    model = Diffusion(1, steps=2, hidden=(5,), likelihood="categorical", categories=3).double()
    every = torch.arange(3.0).double()[:, None]
    model.initialize(every)
    torch.manual_seed(1)
    with torch.no_grad():
        model.network.layers[-1].weight.normal_()
        model.process.first.fill_(12.0)  # wide steps, narrow weights
        model.process.log_span.fill_(0.7)
    model.eval()
    w = log_weights(model, model.default_guide(), every, num_particles=4000).exp()  # (K, 3)
    total = w.sum(1)
    assert abs(float(total.mean()) - 1) < 5 * float(total.std()) / math.sqrt(4000)


def test_diffusion_continuous_bound_is_tight_with_the_exact_denoiser() -> None:
    """For any schedule between its ends; another denoiser has a gap."""
    result = []
    for crooked in (False, True):
        model = linear(continuous=True)
        with torch.no_grad():
            model.process.first.fill_(math.log(math.expm1(0.3)))
            model.process.log_span.fill_(math.log(27.0))
            if not crooked:
                model.process.increments.zero_()
        result.append(mean_estimate(model, X, middles(4000)))
    torch.testing.assert_close(result[0], result[1])
    spread, center = torch.tensor(1.5 * 0.8), torch.tensor(2.0 + 1.5 * 0.3)
    torch.testing.assert_close(result[0], normal_log_prob(X, center, spread**2), atol=1e-4, rtol=0)
    with torch.no_grad():
        model.get_parameter("denoiser.spread").fill_(0.5)
    assert (mean_estimate(model, X, middles(4000)) < result[0] - 0.05).any()


def test_diffusion_bound_tightens_with_steps_given_the_exact_denoiser() -> None:
    truth = torch.distributions.Normal(torch.tensor(2.45), torch.tensor(1.2))
    means = []
    for steps in (2, 8, 64):
        nodes, weights = np.polynomial.hermite_e.hermegauss(20)
        x = truth.mean + truth.stddev * torch.tensor(nodes)
        bounds = exact_bound(linear(steps), x).detach()
        means.append(float(bounds @ torch.tensor(weights / weights.sum())))
    assert means[0] < means[1] < means[2] < -float(truth.entropy())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_diffusion_draws_have_the_variance_of_the_linear_chain(eta: float) -> None:
    model = linear()
    gamma = model.process.gamma(torch.arange(4).double() / 3)
    gamma, mean, variance = gamma.detach(), 0.0, 1.0
    for i in (3, 2, 1):
        ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        (at_0, at_1), sd = model._step(ends, gamma[i - 1], gamma[i], eta)
        slope, at_0 = (at_1 - at_0).item(), at_0.item()
        mean, variance = at_0 + slope * mean, slope**2 * variance + sd.item() ** 2
    variance = variance / float(torch.sigmoid(-gamma[0])) + float(gamma[0].exp())
    mean = 2.0 + 1.5 * mean / math.sqrt(float(torch.sigmoid(-gamma[0])))
    draws = model.draw(20_000, steps=3, eta=eta)
    assert abs(float(draws.mean()) - mean) < 5 * 1.5 * math.sqrt(variance / 20_000)
    sd_of_variance = math.sqrt(2 / 20_000)
    assert abs(float(draws.var()) / (1.5**2 * variance) - 1) < 5 * sd_of_variance


def test_diffusion_noiseless_draws_reach_the_data_variance_with_many_steps() -> None:
    model = linear()
    with torch.no_grad():
        model.process.first.fill_(3.0)
        model.process.log_span.fill_(math.log(18.0))
    draws = model.draw(20_000, steps=400, eta=0.0)
    assert abs(float(draws.var()) / (1.5 * 0.8) ** 2 - 1) < 5 * math.sqrt(2 / 20_000)


def test_stratified_times_are_uniform_and_evenly_spaced() -> None:
    fn = StratifiedTimes(torch.zeros(())).expand((50,))
    torch.manual_seed(0)
    draws = fn.sample((400,)).reshape(400, 50)  # one stratification over all of them
    assert float(draws.flatten().sort().values.diff().max()) < 2 / draws.numel()
    alone = torch.stack([fn.sample() for _ in range(500)])  # (500, 50)
    assert kstest(alone[:, 7].numpy(), "uniform").pvalue > 1e-3
    independent = torch.rand(500, 50)
    assert (alone**2).mean(1).std() < 0.25 * (independent**2).mean(1).std()
    assert ((alone >= 0) & (alone <= 1)).all()


def rows(count: int = 60) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(count, 2) @ torch.tensor([[1.0, 0.6], [0.0, 0.5]]) + 3


def test_objectives_of_log_weights_reject_the_diffusion_training_program() -> None:
    x = rows()
    model = Diffusion(2, steps=3, hidden=(8,))
    model.initialize(x)
    guide = model.default_guide(x)
    with pytest.raises(ValueError, match="IWAE needs log-weights, but the model's site 'steps'"):
        IWAE(3).loss(model, guide, x)
    with pytest.raises(ValueError, match="A log-weight needs log-weights"):
        log_weights(model, guide, x)
    objective = IWAE(3)
    objective.loss(model.eval(), guide.eval(), x)  # a whole chain has them …
    model.train()
    guide.train()
    with pytest.raises(ValueError, match="site 'steps'"):
        objective.loss(model, guide, x)  # … and what was found out then does not hold now
    result = check(model, guide, x)
    assert result.ok
    other = check(model, AmortizedNormal(model, x), x)
    assert other.codes == ["other-draws"]
    unfit = {s.name for s in result.estimators if not s.supported}
    assert {"IWAE", "VIMCO", "RenyiELBO"} <= unfit
    assert "ELBO" not in unfit
    assert check(model.eval(), guide.eval(), x).ok


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "RenyiELBO(alpha=0.5)"}, "RenyiELBO needs log-weights"),
        ({"kl_weight": 0.5}, "KL weight scales latent sites"),
        ({"guide": "ppl_lvm.guides:AmortizedNormal"}, "the guide draws 't'"),
    ],
)
def test_fit_rejects_diffusion_with_unsuitable_objectives(
    settings: dict[str, Any], message: str
) -> None:
    model = Diffusion(steps=3, hidden=(8,))
    with pytest.raises(ValueError, match=message):
        fit(model, settings.pop("guide", None), rows(), num_steps=2, **settings)


@pytest.mark.slow
def test_diffusion_fit_reaches_a_gaussian_and_its_run_loads(tmp_path: Path) -> None:
    x = rows(100)
    run = fit(
        Diffusion(steps=8, hidden=(16,)),
        None,
        x,
        num_steps=300,
        batch_size=50,
        engine="captured",
        directory=tmp_path / "run",
    )
    best = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T)).log_prob(x).mean()
    assert float(best) - 1.0 < run.results["bound"] < float(best) + 0.05
    assert run.results["bound"] < run.results["log_evidence"] < float(best) + 0.05
    again = load_run(tmp_path / "run")
    assert again.log_evidence(x, 5).value == run.log_evidence(x, 5).value
    assert run.sample(7)["x"].shape == (7, 2)
    diffusion: Any = run.model
    diffusion.steps = 40
    assert "z_40" in run.encode(x[:3])
