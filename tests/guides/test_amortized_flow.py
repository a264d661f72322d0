"""AmortizedFlow: normalized densities, and posteriors that are no normals."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor

from ppl_lvm.checks import check
from ppl_lvm.estimators import ELBO
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedFlow, AmortizedNormal
from ppl_lvm.guides.parts.autoregressive_flow import Autoregressive


def _perturb(guide: AmortizedFlow) -> None:
    """Move the steps away from the identity, so that a wrong Jacobian shows."""
    with torch.no_grad():
        for parameter in guide.networks.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))


def _interval(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        u = pyro.sample("u", dist.Uniform(-1.0, 2.0))
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


def test_flow_density_on_an_interval_is_normalized() -> None:
    guide = AmortizedFlow(_interval, torch.randn(3))
    _perturb(guide)
    q = poutine.trace(guide).get_trace(torch.randn(3)).nodes["u"]["fn"]
    grid = torch.linspace(-1, 2, 20001)[1:-1]
    mass = q.log_prob(grid[:, None]).exp().sum(0) * (grid[1] - grid[0])
    torch.testing.assert_close(mass.detach(), torch.ones(3), atol=2e-3, rtol=0)


def _plane(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def _mass(flow: str) -> Tensor:
    """∫ q(z | x) dz of one row on a grid."""
    pyro.set_rng_seed(0)
    x = torch.randn(2).double()
    guide = AmortizedFlow(_plane, x, flow=flow)
    _perturb(guide)
    with torch.no_grad():
        q = poutine.trace(guide).get_trace(x[:1]).nodes["z"]["fn"]
        side = torch.linspace(-12, 12, 200).double()
        grid = torch.cartesian_prod(side, side)[:, None, :]
        return q.log_prob(grid).exp().sum() * (side[1] - side[0]) ** 2


@pytest.mark.parametrize("flow", ["affine", "spline"])
def test_flow_density_on_the_plane_is_normalized(
    flow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert abs(float(_mass(flow)) - 1) < 1e-3
    # The wrong twin: a density without the Jacobian of a step.
    monkeypatch.setattr(Autoregressive, "log_abs_det_jacobian", lambda self, x, y: x.sum(-1) * 0)
    assert abs(float(_mass(flow)) - 1) > 1e-2


def test_flow_scores_a_copy_of_a_draw_as_the_draw() -> None:
    """The density of a draw is cached; a copy of it is inverted through all steps."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", 2, dim=-2):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0).expand([2, 2]).to_event(2))
            pyro.sample("x", dist.Normal(z.sum((-1, -2)), 1.0), obs=x.expand(2, -1))

    x = torch.randn(3).double()
    guide = AmortizedFlow(model, x, steps=3)
    _perturb(guide)
    node = poutine.trace(guide).get_trace(x).nodes["z"]
    assert node["value"].shape == (2, 3, 2, 2)
    cached, value = node["fn"].log_prob(node["value"]), node["value"].detach().clone()
    torch.testing.assert_close(node["fn"].log_prob(value), cached, atol=1e-6, rtol=1e-6)


def test_flow_starts_near_a_normal() -> None:
    x = torch.randn(6)
    pyro.set_rng_seed(1)
    guide = AmortizedFlow(_plane, x)
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    loc, log_scale = guide.encoder(x)[:, :4].chunk(2, -1)
    draw = q.sample((2000,))
    torch.testing.assert_close(draw.mean(0), loc, atol=0.2, rtol=0)
    torch.testing.assert_close(draw.std(0), log_scale.exp(), atol=0.2, rtol=0)


def _bent(x: Tensor) -> None:
    """x ~ N(z_1² - z_2, 0.3²): at x = 0 a posterior along a parabola, far from normal."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 0].square() - z[..., 1], 0.3), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize(("flow", "fraction"), [("affine", 0.85), ("spline", 0.4)])
def test_flow_closes_the_gap_of_a_normal(flow: str, fraction: float) -> None:
    x = torch.zeros(4)
    side = torch.linspace(-7, 7, 1401)
    z = torch.cartesian_prod(side, side)
    log_p = dist.Normal(0.0, 0.3).log_prob(z[:, 0].square() - z[:, 1])
    log_p = log_p + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    exact = float(log_p.logsumexp(0) + 2 * (side[1] - side[0]).log())
    gaps = []
    for guide, settings in ((AmortizedNormal, {}), (AmortizedFlow, {"flow": flow})):
        run = fit(
            _bent,
            guide,
            x,
            objective=ELBO(16),
            optimizer="Adam(lr=0.02)",
            num_steps=300,
            guide_settings=settings,
        )
        gaps.append(exact - run.results["bound"])
    assert gaps[0] > 0.5
    assert -0.02 < gaps[1] < fraction * gaps[0]


def test_plain_svi_changes_every_parameter_of_a_flow() -> None:
    x = torch.randn(4)
    guide = AmortizedFlow(_plane, x)
    svi = SVI(_plane, guide, Adam({"lr": 0.01}), Trace_ELBO())
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    svi.step(x)
    assert not [name for name, p in guide.named_parameters() if torch.equal(p, before[name])]


def test_flow_passes_check_on_an_interval() -> None:
    x = torch.rand(6).round()
    issues = check(_interval, AmortizedFlow(_interval, x), x)
    assert len(issues) == 0, str(issues)


def test_flow_refuses_unsupported_arguments_with_a_remedy() -> None:
    x = torch.randn(3)
    with pytest.raises(ValueError, match=r"'u': an affine flow of a scalar.*flow=\"spline\""):
        AmortizedFlow(_interval, x, flow="affine")
    with pytest.raises(ValueError, match=r"flow='iaf'. Use 'spline' or 'affine'"):
        AmortizedFlow(_interval, x, flow="iaf")
    with pytest.raises(ValueError, match="steps=0"):
        AmortizedFlow(_interval, x, steps=0)
