"""Gradients through draws of sparse Dirichlets."""

from typing import Any

import pytest
import torch
from pyro.distributions import Dirichlet
from torch import Tensor

from ppl_lvm.guides.parts.interior_dirichlet import LEAST, InteriorDirichlet, interior_dirichlet


def _gradients(kind: Any) -> tuple[Tensor, Tensor]:
    """∂/∂c of Σ 20 log Σ_k π_k β_k with topics β ~ Dirichlet(c), c = 0.01, and the draws."""
    concentration = torch.full((200, 5, 50), 0.01, requires_grad=True)
    topics = kind(concentration).rsample()
    (20 * topics.mean(-2).log()).sum().backward()
    assert concentration.grad is not None
    return concentration.grad, topics.detach()


def test_interior_dirichlet_has_finite_gradients_where_plain_draws_have_none() -> None:
    gradient, topics = _gradients(InteriorDirichlet)
    assert gradient.isfinite().all()
    assert topics.min() == pytest.approx(torch.finfo(torch.float32).tiny ** 0.5, rel=1e-5)
    assert not _gradients(Dirichlet)[0].isfinite().all()


def test_interior_dirichlet_draws_what_a_dirichlet_draws_inside() -> None:
    q = InteriorDirichlet(torch.tensor([0.8, 2.0, 5.0])).expand([4])
    assert isinstance(q, InteriorDirichlet)
    torch.manual_seed(1)
    ours = q.rsample((100,))
    torch.manual_seed(1)
    assert torch.equal(ours, Dirichlet(torch.tensor([0.8, 2.0, 5.0])).expand([4]).rsample((100,)))


def test_interior_dirichlet_bounds_the_concentration_and_keeps_its_gradient() -> None:
    concentration = torch.tensor([1e-6, 3.0], requires_grad=True)
    q = interior_dirichlet(concentration)
    assert q.concentration.tolist() == pytest.approx([LEAST, 3.0])
    q.concentration.sum().backward()
    assert concentration.grad is not None
    assert concentration.grad.tolist() == [1, 1]
