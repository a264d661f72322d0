"""Hand-written gradients for bits: exact expectations over uniforms."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_lvm.benchmarks.gradient_suite import exact
from ppl_lvm.benchmarks.handwritten import belief_net, binary, relaxed

X = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)


@pytest.fixture
def params() -> dict[str, Tensor]:
    torch.set_default_dtype(torch.float64)
    return belief_net.parameters()


def signal(params: dict[str, Tensor]) -> binary.Function:
    """log p - log q at fixed guide parameters: f of the ELBO."""
    fixed = {k: v.detach() for k, v in params.items()}
    return lambda z: belief_net.log_p(params, X, z) - belief_net.log_q(fixed, X, z)


def exact_elbo(params: dict[str, Tensor]) -> Tensor:
    """E_q [log p - log q] by the sum over all states, (B,)."""
    z = belief_net.states(len(params["model.prior"]), X.dtype)
    log_q = belief_net.log_q(params, X, z)
    return (log_q.exp() * (belief_net.log_p(params, X, z) - log_q)).sum(0)


def exact_gradient(params: dict[str, Tensor]) -> Tensor:
    return exact.gradients(exact_elbo(params), list(params.values()))


def cells(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Midpoints u (U, 1, D) of the cells with a constant pair of bits, and the cells' volumes."""
    s = logits.sigmoid().detach()[0]
    edges = [sorted([0.0, p.item(), 1 - p.item(), 1.0]) for p in s]
    midpoints = [[(a + b) / 2 for a, b in pairwise(e)] for e in edges]
    lengths = [[b - a for a, b in pairwise(e)] for e in edges]
    u = torch.cartesian_prod(*map(torch.tensor, midpoints)).unsqueeze(1)
    return u, torch.cartesian_prod(*map(torch.tensor, lengths)).prod(-1, keepdim=True)


def test_handwritten_disarm_is_unbiased(params: dict[str, Tensor]) -> None:
    logits = belief_net.guide_logits(params, X)
    u, volume = cells(logits)
    value = volume * binary.disarm(logits, u, signal(params))
    reached = exact.gradients(value, list(params.values()))
    torch.testing.assert_close(reached, exact_gradient(params), rtol=1e-12, atol=1e-12)


def test_handwritten_disarm_with_wrong_cells_is_biased(params: dict[str, Tensor]) -> None:
    logits = belief_net.guide_logits(params, X)
    u, volume = cells(logits)
    wrong = exact.gradients(
        volume * binary.disarm(2 * logits, u, signal(params)), list(params.values())
    )
    assert not torch.allclose(wrong, exact_gradient(params), rtol=1e-2)


def uniform_grid(logits: Tensor, points: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """u, v (G, 1, 1) and weights (G, 1): Gauss-Legendre on both sides of the bit's threshold."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    t, dt = (nodes + 1) / 2, weights / 2
    # Logarithms diverge at both ends: s = t³ (10 - 15 t + 6 t²) makes the grid finer there.
    s, ds = t**3 * (10 - 15 * t + 6 * t**2), dt * 30 * t**2 * (1 - t) ** 2
    cut = 1 - logits.sigmoid().item()
    u = torch.tensor(np.concatenate([cut * s, cut + (1 - cut) * s]))
    du = torch.tensor(np.concatenate([cut * ds, (1 - cut) * ds]))
    uv = torch.cartesian_prod(u, torch.tensor(s))
    weight = torch.cartesian_prod(du, torch.tensor(ds)).prod(-1, keepdim=True)
    return uv[:, :1].unsqueeze(-1), uv[:, 1:].unsqueeze(-1), weight


@pytest.mark.parametrize("eta", [0.0, 1.0, 0.4])
def test_handwritten_rebar_is_unbiased(eta: float) -> None:
    torch.set_default_dtype(torch.float64)
    params = belief_net.parameters(latent=1)
    logits = belief_net.guide_logits(params, X)
    u, v, weight = uniform_grid(logits)
    fixed = signal({name: value.detach() for name, value in params.items()})
    f = signal(params)
    value = weight * binary.rebar(logits, u, v, f, fixed, temperature=0.6, eta=eta)
    reached = exact.gradients(value, list(params.values()))
    torch.testing.assert_close(reached, exact_gradient(params), rtol=1e-6, atol=1e-6)


def test_handwritten_rebar_with_unconditional_noise_is_biased() -> None:
    torch.set_default_dtype(torch.float64)
    params = belief_net.parameters(latent=1)
    logits = belief_net.guide_logits(params, X)
    u, v, weight = uniform_grid(logits)
    f = signal(params)
    b, z, z_tilde = binary.couple(logits, u, v)
    c_z, c_tilde = f((z / 0.6).sigmoid()), f((z_tilde.detach() / 0.6).sigmoid())
    log_q = belief_net.log_bernoulli(logits, b)
    value = weight * ((f(b) - c_tilde).detach() * log_q + f(b) + c_z - c_tilde)
    wrong = exact.gradients(value, list(params.values()))
    assert not torch.allclose(wrong, exact_gradient(params), rtol=1e-2)


def test_handwritten_relaxation_bias_falls_with_temperature() -> None:
    torch.set_default_dtype(torch.float64)
    params = belief_net.parameters(latent=1)
    guide = [params["guide.weight"], params["guide.bias"]]
    exactly = exact.gradients(exact_elbo(params), guide)
    logits = belief_net.guide_logits(params, X)
    u, _, weight = uniform_grid(logits, points=400)
    u, weight = u[::400], weight.view(-1, 400).sum(-1, keepdim=True)
    f = signal(params)
    errors = []
    for temperature in (1.0, 0.3, 0.1):
        value = weight * f(relaxed.concrete(logits, u, temperature))
        errors.append((exact.gradients(value, guide) - exactly).norm() / exactly.norm())
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] > 0.02
    assert errors[2] < 0.1


def test_gumbel_softmax_of_two_categories_is_the_concrete_bit() -> None:
    """softmax over (φ, 0) with two Gumbels has the distribution of σ((φ + logistic) / τ)."""
    torch.manual_seed(0)
    logits = torch.tensor([0.8, 0.0])
    soft = relaxed.gumbel_softmax(logits, torch.rand(100_000, 2), 0.7)[:, 0]
    bits = relaxed.concrete(logits[:1], torch.rand(100_000, 1), 0.7)[:, 0]
    for power in (1, 2, 3):
        gap = (soft**power).mean() - (bits**power).mean()
        assert gap.abs() < 5 * 2**0.5 * soft.std() / 100_000**0.5
    assert (soft > 0.5).float().mean().item() == pytest.approx(logits[0].sigmoid().item(), abs=0.01)


def test_handwritten_straight_through_rounds_forward_only() -> None:
    soft = torch.tensor([[0.2, 0.5, 0.3]], requires_grad=True)
    hard = relaxed.straight_through(soft)
    assert hard.tolist() == [[0.0, 1.0, 0.0]]
    (hard * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert soft.grad is not None
    assert soft.grad.tolist() == [[1.0, 2.0, 3.0]]
    bits, mean = torch.tensor([0.0, 1.0]), torch.tensor([0.2, 0.7], requires_grad=True)
    passed = relaxed.straight_through_bits(bits, mean)
    assert passed.tolist() == [0.0, 1.0]
    (passed * torch.tensor([1.0, 2.0])).sum().backward()
    assert mean.grad is not None
    assert mean.grad.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("temperature", [0.4, 1.0])
def test_relaxed_bit_density_is_that_of_its_draws(temperature: float) -> None:
    """log q(y) = log |du/dy| where y = σ((φ + logit u) / τ) and u is uniform."""
    torch.set_default_dtype(torch.float64)
    logits = torch.tensor([[0.7]])
    u = torch.linspace(0.02, 0.98, 9).reshape(-1, 1).requires_grad_()
    soft = relaxed.concrete(logits, u, temperature)
    (slope,) = torch.autograd.grad(soft.sum(), u)  # dy/du
    density = relaxed.log_concrete(logits, soft, temperature)
    torch.testing.assert_close(density, -slope.squeeze(-1).log())
