"""Linear state-space model against the dense normal."""

import pyro
import pytest
import torch
from incomplete_sequences import incomplete_sequences
from observed_log_prob import observed_log_prob
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppl_lvm.models.linear_state_space import LinearStateSpace

D, P, T, N = 2, 3, 5, 4


pytestmark = pytest.mark.usefixtures("doubles")


def _model() -> LinearStateSpace:
    torch.manual_seed(0)
    model = LinearStateSpace(D, P)
    with torch.no_grad():
        model.A.copy_(0.5 * torch.randn(D, D))
        model.mu = torch.randn(P)
    model.drift = torch.rand(D) + 0.2
    model.scale = torch.rand(P) + 0.2
    return model


def _data() -> Tensor:
    return incomplete_sequences(N, P, missing_step=0)


def _dense(model: LinearStateSpace) -> tuple[Tensor, Tensor, Tensor]:
    """cov(z), cov(z, x), cov(x) of all steps: (T D, T D), (T D, T P), (T P, T P)."""
    powers = [torch.linalg.matrix_power(model.A, k) for k in range(T + 1)]
    from_start = torch.cat([powers[t + 1] for t in range(T)])  # (T D, D)
    blocks = [[powers[t - s] if s <= t else torch.zeros(D, D) for s in range(T)] for t in range(T)]
    from_noise = torch.cat([torch.cat(row, 1) for row in blocks])
    Q = torch.block_diag(*[model.drift.square().diag()] * T)
    zz = from_start @ from_start.mT + from_noise @ Q @ from_noise.mT
    C = torch.block_diag(*[model.C] * T)
    return zz, zz @ C.mT, C @ zz @ C.mT + model.noise.repeat(T).diag()


def _exact(model: LinearStateSpace, x: Tensor) -> Tensor:
    _, _, xx = _dense(model)
    result = []
    for sequence in x.reshape(len(x), -1):
        o = ~sequence.isnan()
        normal = MultivariateNormal(model.mu.repeat(T)[o], xx[o][:, o])
        result.append(normal.log_prob(sequence[o]))
    return torch.stack(result)


def test_linear_state_space_program_and_filter_equal_the_dense_normal() -> None:
    model, x = _model(), _data()
    exact = _exact(model, x)
    torch.testing.assert_close(observed_log_prob(model, x), exact, rtol=0, atol=1e-8)
    torch.testing.assert_close(model.log_evidence(x), exact, rtol=0, atol=1e-8)
    leaves = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad(observed_log_prob(model, x).sum(), leaves),
        torch.autograd.grad(exact.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_linear_state_space_smoother_equals_the_dense_posterior() -> None:
    model, x = _model(), _data()
    zz, zx, xx = _dense(model)
    means, covariances = model.smooth(x)
    for n in range(N):
        o = ~x[n].flatten().isnan()
        gain = torch.linalg.solve(xx[o][:, o], zx[:, o].mT).mT
        m = (gain @ (x[n].flatten() - model.mu.repeat(T))[o]).view(T, D)
        V = zz - gain @ zx[:, o].mT
        torch.testing.assert_close(means[n], m, rtol=0, atol=1e-8)
        for t in range(T):
            at = slice(t * D, (t + 1) * D)
            torch.testing.assert_close(covariances[n, t], V[at, at], rtol=0, atol=1e-8)


def test_linear_state_space_missing_values_are_not_zeros() -> None:
    model, x = _model(), _data()
    assert (
        (observed_log_prob(model, x.nan_to_num(0.0)) - observed_log_prob(model, x))[1:].abs() > 1e-2
    ).all()
    short = x[1:2, :3]
    torch.testing.assert_close(observed_log_prob(model, x)[1:2], observed_log_prob(model, short))


@pytest.mark.slow
def test_linear_state_space_fit_recovers_an_autoregression() -> None:
    """AR(1) seen with noise: A is its coefficient."""
    torch.manual_seed(0)
    z = torch.randn(200)
    steps = []
    for _ in range(30):
        z = 0.7 * z + 0.5**0.5 * torch.randn(200)
        steps.append(z + 0.3 * torch.randn(200))
    x = torch.stack(steps, 1)  # (200, 30)
    model = LinearStateSpace(1)
    model.initialize(x)
    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(80):
        svi.step(x)
    assert float(model.A.detach()) == pytest.approx(0.7, abs=0.05)
    assert float(model.noise.detach().sqrt()) == pytest.approx(0.3, abs=0.1)


def test_linear_state_space_initialize_depends_on_the_seed_alone() -> None:
    x, starts = _data(), []
    for model, seed in ((LinearStateSpace(4, P), 1), (LinearStateSpace(4), 1), (_model(), 2)):
        torch.manual_seed(seed)
        model.initialize(x)
        starts.append(model.em_state())
    for name, value in starts[0].items():
        assert torch.equal(starts[1][name], value)
    assert not torch.equal(starts[0]["A"][:D, :D], starts[2]["A"])
    reached = starts[0]["C"] @ starts[0]["C"].mT  # the start has causes for what varies
    steps = x.flatten(0, 1)
    assert reached.trace() > 0.5 * (steps - steps.nanmean(0)).square().nanmean(0).sum()


def test_linear_state_space_draws_sequences_and_its_state_loads() -> None:
    model, x = _model(), _data()
    drawn = poutine.trace(poutine.uncondition(model)).get_trace(x).nodes["x"]["value"]
    assert drawn.shape == x.shape
    again = LinearStateSpace(D)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.log_evidence(x), model.log_evidence(x))


def test_linear_state_space_evaluates_double_data_in_double_precision() -> None:
    model, x = _model(), _data()
    exact = model.log_evidence(x)
    single = model.float()
    torch.testing.assert_close(single.log_evidence(x), exact, rtol=1e-5, atol=1e-5)
    assert single.log_evidence(x).dtype == single.smooth(x)[0].dtype == torch.float64
