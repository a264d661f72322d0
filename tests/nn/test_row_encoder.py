"""Standardize and RowEncoder: units, missing values, outliers."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from ppl_lvm.nn import RowEncoder, Standardize
from ppl_lvm.nn.row_encoder import soft_clip


def _gaps() -> torch.Tensor:
    x = 5 + 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    x[::4, 1] = torch.nan
    x[7] = torch.nan
    return x


def test_standardize_equals_scikit_learn_and_ignores_missing_values() -> None:
    x = _gaps()
    expected = StandardScaler().fit_transform(x.numpy())
    result = Standardize(x)(x)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
    assert torch.equal(result.isnan(), x.isnan())


def test_standardize_leaves_bits_and_scales_constant_columns_by_the_largest_unit() -> None:
    bits = (torch.randn(9, 3) > 0).float()
    assert torch.equal(Standardize(bits)(bits), bits)
    x = torch.tensor([[7.0, 0.0], [7.0, 4.0]])
    assert torch.equal(Standardize(x)(x + 1), torch.tensor([[0.5, -0.5], [0.5, 1.5]]))


def test_row_encoder_replaces_missing_values_by_the_center_and_adds_a_mask() -> None:
    x = _gaps()
    net = RowEncoder(x, outputs=3)
    assert net.missing
    filled = x.where(~x.isnan(), net.units.shift)
    seen = torch.cat([net.units(filled), (~x.isnan()).float()], -1)
    torch.testing.assert_close(net(x), net.net(seen))
    assert not torch.allclose(net(x), net(filled))  # a mean that was measured is no gap


def test_row_encoder_missing_values_leave_no_nan_in_values_or_gradients() -> None:
    x = _gaps().requires_grad_()
    for net in (RowEncoder(x.detach(), outputs=3), RowEncoder(x[1:4].detach(), outputs=3)):
        out = net(x)
        assert out.isfinite().all()
        (out**2).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert x.grad is not None
    assert torch.equal(x.grad[x.isnan()], torch.zeros(int(x.isnan().sum())))


def test_row_encoder_rejects_rows_of_another_width() -> None:
    with pytest.raises(ValueError, match="rows of 4 columns, got 6"):
        RowEncoder(torch.randn(5, 2, 2), outputs=3)(torch.randn(5, 3, 2))


def test_row_encoder_concatenates_several_tensors() -> None:
    x, y = torch.randn(6, 2, 2), torch.arange(6)
    net = RowEncoder(x, y, outputs=3, activation="tanh", norm="layer")
    assert net(x, y).shape == (6, 3)


def test_row_encoder_clips_outliers_softly() -> None:
    x = torch.zeros(256, 3)
    x[::2, :2] = 5.0
    x[9, 2] = 1.0  # the only one: 16 of it are 256 standard deviations
    net = RowEncoder(x, outputs=2)
    rare = torch.tensor([[0.0, 0.0, 16.0]])
    assert net.units(rare).max() > 200
    assert net(rare).abs().max() < 10
    ordinary = net.units(x[:9])
    assert torch.equal(soft_clip(ordinary), ordinary)
    ladder = torch.linspace(-300, 300, 999, dtype=torch.float64)
    assert (soft_clip(ladder).diff() > 0).all()
    assert soft_clip(ladder).abs().max() < 20
