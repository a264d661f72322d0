"""SetEncoder and PartialEncoder: permutation invariance and missing elements."""

import pytest
import torch
from torch import nn

from ppl_lvm.nn import MLP, PartialEncoder, SetEncoder, Standardize

GENERATOR = torch.Generator().manual_seed(0)
# Whole numbers in double precision: sums are exact in whatever order they are taken.
SET = torch.randint(-3, 4, (4, 6, 2), generator=GENERATOR).double()
PRESENT = torch.rand(4, 6, generator=GENERATOR) < 0.6
ORDER = torch.tensor([3, 0, 5, 1, 4, 2])


def _exact(net: nn.Module) -> nn.Module:
    """The network with small integer parameters, so that sums are exact."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.mul(8).round())
    return net.double()


def test_set_encoder_equals_the_formula() -> None:
    net = SetEncoder(2, 3, features=5, hidden=(4,)).double()
    for x, present, out in zip(SET, PRESENT, net(SET, PRESENT), strict=True):
        known = x[present]
        mean = net.element(known).mean(0)
        count = torch.tensor([float(len(known))], dtype=torch.float64)
        torch.testing.assert_close(out, net.whole(torch.cat([mean, count.log1p()])))


def test_set_encoder_is_permutation_invariant() -> None:
    net = _exact(SetEncoder(2, 3))
    assert torch.equal(net(SET, PRESENT), net(SET[:, ORDER], PRESENT[:, ORDER]))


def test_permutation_test_detects_an_order_dependent_network() -> None:
    wrong = _exact(nn.Sequential(nn.Flatten(), MLP(12, 3)))
    assert not torch.equal(wrong(SET), wrong(SET[:, ORDER]))


def test_set_encoder_missing_element_has_no_influence_and_no_gradient() -> None:
    net = SetEncoder(2, 3).double()
    x = SET.clone().requires_grad_()
    out = net(x, PRESENT)
    gaps = SET.where(PRESENT[..., None], torch.nan)
    assert torch.equal(net(gaps), out)  # NaN says by itself what is missing
    assert torch.equal(net(SET.where(PRESENT[..., None], 1e300), PRESENT), out)
    gaps.requires_grad_()
    (net(gaps) ** 2).sum().backward()
    assert gaps.grad is not None
    assert torch.equal(gaps.grad[~PRESENT], torch.zeros_like(gaps.grad[~PRESENT]))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_set_encoder_absent_element_equals_a_smaller_set() -> None:
    net = SetEncoder(2, 3).double()
    padded = torch.cat([SET, torch.full_like(SET, torch.nan)], 1)
    torch.testing.assert_close(net(padded), net(SET), rtol=1e-14, atol=0)


def test_set_encoder_encodes_an_empty_set() -> None:
    out = SetEncoder(2, 3)(torch.full((1, 6, 2), torch.nan))
    assert out.isfinite().all()


def test_partial_encoder_columns_and_embeddings_permute_together() -> None:
    net = _exact(PartialEncoder(6, 3))
    assert isinstance(net, PartialEncoder)
    x = SET[..., 0].where(PRESENT, torch.nan)
    before = net(x)
    with torch.no_grad():
        net.names.copy_(net.names[ORDER])
    assert torch.equal(net(x[:, ORDER]), before)
    assert not torch.equal(net(x), before)  # a value under another column's name


def test_partial_encoder_missing_value_differs_from_zero() -> None:
    net = PartialEncoder(2, 3)
    gap, zero = torch.tensor([[1.0, torch.nan]]), torch.tensor([[1.0, 0.0]])
    assert not torch.allclose(net(gap), net(zero))


def test_partial_encoder_follows_standardize_and_rejects_other_widths() -> None:
    x = 100 + 10 * torch.randn(20, 6)
    x[::3, 2] = torch.nan
    net = nn.Sequential(Standardize(x), PartialEncoder(6, 4))
    assert net(x).isfinite().all()
    with pytest.raises(ValueError, match=r"takes 6 columns, got \(3, 5\)"):
        PartialEncoder(6, 4)(torch.zeros(3, 5))
