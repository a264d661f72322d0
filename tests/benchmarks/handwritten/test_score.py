"""Hand-written score-function gradients against exact sums."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ppl_lvm.benchmarks.gradient_suite import exact
from ppl_lvm.benchmarks.handwritten import belief_net, pathwise, score, wake

K = 3
X = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)


@pytest.fixture
def tables() -> tuple[list[Tensor], Tensor, Tensor]:
    """Parameters, and log p and log q of all states, (S, B), of a belief net with two bits."""
    torch.set_default_dtype(torch.float64)
    params = belief_net.parameters()
    z = belief_net.states(2).expand(-1, len(X), -1)
    log_p, log_q = belief_net.log_p(params, X, z), belief_net.log_q(params, X, z)
    return list(params.values()), log_p, log_q


def own_weight_in_baseline(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_w = (log_p - log_q).detach()
    return ((log_w - log_w.mean(0)) * log_q + log_p).mean(0)


def no_score(log_p: Tensor, log_q: Tensor) -> Tensor:
    return pathwise.iwae(log_p, log_q)


def scale_inside(log_p: Tensor, log_q: Tensor) -> Tensor:
    return score.vimco(10 * log_p, 10 * log_q) / 10


def alpha_dropped(log_p: Tensor, log_q: Tensor) -> Tensor:
    return score.renyi(log_p, log_q, alpha=0.0)


def baseline_sees_the_draw(log_p: Tensor, log_q: Tensor) -> Tensor:
    return score.nvil(log_p, log_q, (log_p - log_q).mean(0))


Pair = tuple[exact.Surrogate, exact.Surrogate]
RIGHT: dict[str, Pair] = {
    "reinforce": (score.reinforce, pathwise.elbo),
    "reinforce-baseline": (partial(score.reinforce, baseline=-2.0), pathwise.elbo),
    "rloo": (score.rloo, pathwise.elbo),
    "vimco": (score.vimco, pathwise.iwae),
    "renyi-0.5": (partial(score.renyi, alpha=0.5), partial(pathwise.renyi, alpha=0.5)),
    "vr-max": (score.vr_max, pathwise.vr_max),
    "renyi-2": (partial(score.renyi, alpha=2.0), partial(pathwise.renyi, alpha=2.0)),
}
WRONG: dict[str, Pair] = {
    "own weight in the baseline": (own_weight_in_baseline, pathwise.elbo),
    "no score term": (no_score, pathwise.iwae),
    "scale inside the logarithm": (scale_inside, pathwise.iwae),
    "alpha dropped": (alpha_dropped, partial(pathwise.renyi, alpha=0.5)),
    "baseline sees the draw": (baseline_sees_the_draw, pathwise.elbo),
}
Tables = tuple[list[Tensor], Tensor, Tensor]


def relative_bias(tables: Tables, surrogate: exact.Surrogate, bound: exact.Surrogate) -> float:
    params, log_p, log_q = tables
    reached = exact.gradients(exact.expectation(surrogate, log_p, log_q, K), params)
    expected = exact.gradients(exact.target(bound, log_p, log_q, K), params)
    return ((reached - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", RIGHT)
def test_handwritten_score_gradient_is_unbiased(name: str, tables: Tables) -> None:
    assert relative_bias(tables, *RIGHT[name]) < 1e-12


@pytest.mark.parametrize("name", WRONG)
def test_wrong_score_gradient_is_biased(name: str, tables: Tables) -> None:
    assert relative_bias(tables, *WRONG[name]) > 1e-2


def test_handwritten_reinforce_targets_the_exact_elbo(tables: Tables) -> None:
    _, log_p, log_q = tables
    exactly = exact.target(pathwise.elbo, log_p, log_q, 1)
    torch.testing.assert_close(exactly, (log_q.exp() * (log_p - log_q)).sum(0))


def test_handwritten_nvil_is_unbiased_and_fits_its_baseline(tables: Tables) -> None:
    _, log_p, log_q = tables
    baseline = torch.tensor([-1.0, -4.0], requires_grad=True)
    surrogate = partial(score.nvil, baseline=baseline)
    assert relative_bias(tables, surrogate, pathwise.elbo) < 1e-12
    value = exact.expectation(surrogate, log_p, log_q, 1)
    elbo = exact.target(pathwise.elbo, log_p, log_q, 1)
    slope = torch.autograd.grad(value.sum(), baseline)[0]
    torch.testing.assert_close(slope, 2 * (elbo - baseline).detach())


def test_handwritten_wake_model_is_unbiased_for_iwae(tables: Tables) -> None:
    params, log_p, log_q = tables
    model = params[:3]
    expected = exact.gradients(exact.target(pathwise.iwae, log_p, log_q, K), model)
    reached = exact.gradients(exact.expectation(wake.wake_model, log_p, log_q, K), model)
    torch.testing.assert_close(reached, expected, rtol=1e-12, atol=1e-12)

    def unnormalized(log_p: Tensor, log_q: Tensor) -> Tensor:
        return ((log_p - log_q).exp().detach() * log_p).sum(0)

    wrong = exact.gradients(exact.expectation(unnormalized, log_p, log_q, K), model)
    assert not torch.allclose(wrong, expected, rtol=1e-2)


def test_handwritten_wake_guide_converges_to_forward_kl(tables: Tables) -> None:
    params, log_p, log_q = tables
    guide = params[3:]
    posterior = log_p.detach().softmax(0)
    expected = exact.gradients((posterior * log_q).sum(0), guide)
    bias = [
        exact.gradients(exact.expectation(wake.wake_guide, log_p, log_q, k), guide) - expected
        for k in (1, 2, 4)
    ]
    assert bias[0].norm() == pytest.approx(expected.norm().item())  # one particle is uninformative
    assert bias[0].norm() > 1.3 * bias[1].norm() > 1.3 * 1.3 * bias[2].norm()


def test_handwritten_tvo_with_one_partition_is_the_elbo(tables: Tables) -> None:
    params, log_p, log_q = tables
    value = exact.expectation(partial(wake.tvo, betas=wake.log_spaced(1)), log_p, log_q, K)
    elbo = exact.target(pathwise.elbo, log_p, log_q, 1)
    model, guide = params[:3], params[3:]
    torch.testing.assert_close(exact.gradients(value, model), exact.gradients(elbo, model))
    torch.testing.assert_close(exact.gradients(value, guide), exact.gradients(elbo, guide))


def test_handwritten_tvo_is_consistent(tables: Tables) -> None:
    params, log_p, log_q = tables
    betas = wake.log_spaced(3, first=0.2)
    assert betas == pytest.approx([0, 0.2, 0.2**0.5, 1])
    expected_value = torch.zeros(len(X))
    for beta, next_beta in pairwise(betas):
        path = ((1 - beta) * log_q + beta * log_p).softmax(0)
        expected_value = expected_value + (next_beta - beta) * (path * (log_p - log_q)).sum(0)
    expected = exact.gradients(expected_value, params)
    surrogate = partial(wake.tvo, betas=betas)
    bias = [
        (exact.gradients(exact.expectation(surrogate, log_p, log_q, k), params) - expected).norm()
        for k in (2, 3, 4, 5)
    ]
    assert bias[0] > bias[1] > bias[2] > bias[3]
    assert bias[3] < 0.4 * bias[0]


@pytest.mark.parametrize("n", [1.5, 2.0])
def test_handwritten_exp_cubo_is_unbiased(n: float, tables: Tables) -> None:
    params, log_p, log_q = tables
    expected = -exact.gradients((log_q + n * (log_p - log_q)).exp().sum(0), params)
    surrogate = partial(wake.exp_cubo, n=n)
    reached = exact.gradients(exact.expectation(surrogate, log_p, log_q, 2), params)
    torch.testing.assert_close(reached, expected, rtol=1e-10, atol=1e-12)
    own_maximum = partial(wake.cubo, n=n)
    biased = exact.gradients(exact.expectation(own_maximum, log_p, log_q, 2), params)
    assert not torch.allclose(biased / biased.norm(), expected / expected.norm(), rtol=1e-2)


def test_handwritten_cubo_is_no_upper_bound_at_few_particles(tables: Tables) -> None:
    _, log_p, log_q = tables
    evidence = log_p.logsumexp(0)
    limit = (log_q + 2 * (log_p - log_q)).logsumexp(0) / 2
    two = -exact.expectation(wake.cubo, log_p, log_q, 2)
    assert (limit > evidence).all()
    assert (two < evidence).all()  # the estimate of an upper bound is below log p(x)
