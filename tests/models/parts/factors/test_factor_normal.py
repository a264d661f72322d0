"""FactorNormal against a dense normal, in both precisions."""

import pytest
import torch
from pyro.distributions import LowRankMultivariateNormal, MultivariateNormal
from torch import Tensor

from ppl_lvm.models.parts.factors.factor_normal import FactorNormal


def _parts(dtype: torch.dtype, size: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    loc, W = torch.randn(3, 1, 4, generator=draw), torch.randn(3, 1, 4, 2, generator=draw)
    psi = torch.rand(3, 1, 4, generator=draw) + 0.5
    x = (size * W[0, 0] @ torch.randn(2, 5, generator=draw)).mT + torch.randn(5, 4, generator=draw)
    return loc.to(dtype), (size * W).to(dtype), psi.to(dtype), x.to(dtype)


def _dense(loc: Tensor, W: Tensor, psi: Tensor, x: Tensor) -> Tensor:
    return MultivariateNormal(loc, W @ W.mT + torch.diag_embed(psi)).log_prob(x)


def test_factor_normal_density_equals_the_dense_normal() -> None:
    loc, W, psi, x = _parts(torch.float64, 1.0)
    result = FactorNormal(loc, W, psi).log_prob(x)
    assert result.shape == (3, 5)
    torch.testing.assert_close(result, _dense(loc, W, psi, x))


def test_factor_normal_is_accurate_in_single_precision() -> None:
    exact = _dense(*_parts(torch.float64, 1000.0))[0]
    loc, W, psi, x = _parts(torch.float32, 1000.0)
    result = FactorNormal(loc, W, psi).log_prob(x)[0].double()
    torch.testing.assert_close(result, exact, atol=0.01, rtol=0)
    others = LowRankMultivariateNormal(loc, W, psi).log_prob(x)[0].double()
    with pytest.raises(AssertionError):  # the wrong twin
        torch.testing.assert_close(others, exact, atol=0.01, rtol=0)
