"""WhitenedNormal against the multivariate normal."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import MultivariateNormal
from torch import Tensor

from largest_tensor import LargestTensor
from ppl_lvm.models import GaussianMixture
from ppl_lvm.models.parts.mixtures.whitened_normal import WhitenedNormal


def _parameters(K: int, P: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    L = torch.randn(K, 1, P, P, dtype=dtype).tril() + 3 * torch.eye(P, dtype=dtype)
    return torch.randn(K, 1, P, dtype=dtype), L


@pytest.mark.parametrize("tied", [False, True])
def test_whitened_normal_density_and_gradient_equal_multivariate_normal(tied: bool) -> None:
    mu, L = _parameters(5, 3, torch.float64)
    L = L[0, 0] if tied else L
    x = torch.randn(40, 3, dtype=torch.float64)
    weight = torch.rand(5, 40, dtype=torch.float64)
    results = []
    for form in (WhitenedNormal, MultivariateNormal):
        leaves = [t.clone().requires_grad_() for t in (mu, L)]
        table = form(leaves[0], scale_tril=leaves[1]).expand([5, 40]).log_prob(x)
        results.append([table, *torch.autograd.grad((weight * table).sum(), leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_whitened_normal_is_accurate_far_from_the_origin_in_float32() -> None:
    mu, L = _parameters(4, 3, torch.float32)
    mu = mu + 1000
    x = mu[torch.randint(4, (50,)), 0] + torch.randn(50, 3)
    exact = MultivariateNormal(mu.double(), scale_tril=L.double()).log_prob(x.double())
    plain = MultivariateNormal(mu, scale_tril=L).log_prob(x)
    result = WhitenedNormal(mu, scale_tril=L).log_prob(x)
    assert (result - exact).abs().max() < 4 * (plain - exact).abs().max() + 1e-4


@pytest.mark.parametrize("shape", [(), (6,)])
def test_whitened_normal_of_other_shapes_equals_multivariate_normal(shape: tuple[int, ...]) -> None:
    mu, L = torch.randn(*shape, 3), torch.eye(3) * 2
    x = torch.randn(*shape, 3)
    expected = MultivariateNormal(mu, scale_tril=L).log_prob(x)
    torch.testing.assert_close(WhitenedNormal(mu, scale_tril=L).log_prob(x), expected)
    assert WhitenedNormal(mu, scale_tril=L).sample().shape == (*shape, 3)


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_whitened_normal_mixture_step_memory_is_bounded(covariance: str) -> None:
    K, N, P = 6, 500, 8
    x = torch.randn(N, P)
    model = GaussianMixture(K, P, covariance)
    with LargestTensor() as largest:
        enumerated = pyro.infer.config_enumerate(model)
        elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
        elbo.loss_and_grads(enumerated, lambda x: None, x)
    assert K * N <= largest.elements <= K * N * P


def test_whitened_normal_validation_rejects_invalid_rows() -> None:
    mu, L = _parameters(2, 3, torch.float32)
    with poutine.trace(), pytest.raises(ValueError, match="support"):
        WhitenedNormal(mu, scale_tril=L, validate_args=True).log_prob(torch.full((4, 3), torch.nan))


def test_whitened_normal_log_density_has_the_expanded_batch_shape() -> None:
    """Pyro expands to the plate of particles, which the rows do not have."""
    mu, L = torch.randn(3, 1, 1, 2), torch.eye(2).expand(3, 1, 1, 2, 2)
    fn = WhitenedNormal(mu, scale_tril=L).expand([3, 4, 5])
    x = torch.randn(5, 2)
    result = fn.log_prob(x)
    assert result.shape == (3, 4, 5)
    torch.testing.assert_close(
        result, MultivariateNormal(mu, scale_tril=L).log_prob(x).expand(3, 4, 5)
    )
