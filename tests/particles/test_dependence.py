"""Dependence on draws: of operations, not of values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pyro.distributions import MultivariateNormal
from torch import Tensor, nn

from ppl_lvm.particles.dependence import SEVERAL, FollowDependence, row_labels

B = 4
ROW = [1, 2, 3, 4]  # every row depends on itself
ALL = [SEVERAL] * 4
Z = torch.randn(B, 3, generator=torch.Generator().manual_seed(0))
z = Z[:, 0]
C = torch.tensor([0, 1, 2, 1])
ZEROS = torch.zeros(3, 2)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x


def shifted_in_place(x: Tensor) -> Tensor:
    result = torch.zeros(B)
    result[1:] = x[:-1]
    return result


def into_a_column(x: Tensor) -> Tensor:
    result = torch.zeros(B, 2)
    result[:, 0].add_(x)
    return result[:, 0]


def written_by_a_mask(x: Tensor) -> Tensor:
    result = torch.zeros(B)
    result[x > 0] = 1.0
    return result


def overwritten(x: Tensor) -> Tensor:
    x.zero_()
    return x


CASES: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, list[int]]] = {
    "zero weight": (lambda x: 0 * x, z, ROW),
    "linear": (lambda x: F.linear(x, ZEROS.T), Z, ROW),
    "softmax": (lambda x: x.softmax(-1), Z, ROW),
    "layer norm": (nn.LayerNorm(3), Z, ROW),
    "batch norm": (nn.BatchNorm1d(3), Z, ALL),
    "mean": (lambda x: x.mean().expand(B), z, ALL),
    "shift": (lambda x: 0 * x.roll(1), z, [4, 1, 2, 3]),
    "shift by cat": (lambda x: torch.cat([x.new_zeros(1), x[:-1]]), z, [0, 1, 2, 3]),
    "shift in place": (shifted_in_place, z, [0, 1, 2, 3]),
    "in place in a view": (into_a_column, z, ROW),
    "overwritten": (overwritten, z, [0, 0, 0, 0]),
    "cumulative sum": (lambda x: x.cumsum(0), z, [1, *[SEVERAL] * 3]),
    "first row": (lambda x: x[0].expand(B), z, [1] * 4),
    "comparison": (lambda x: (x > 0.5).float(), z, ROW),
    "where": (lambda x: torch.where(x > 0.5, 1.0, 0.0), z, ROW),
    "arg max": (lambda x: ZEROS[x.argmax(-1)], Z, ROW),
    "sort": (lambda x: x.sort().values, z, ALL),
    "index": (lambda c: ZEROS[c], C, ROW),
    "index of a middle dimension": (lambda c: torch.zeros(5, 3)[:, c].T, C, ROW),
    "index ()": (lambda c: torch.stack([ZEROS[c[1]], ZEROS[c[0]]]).repeat(2, 1), C, [2, 1, 2, 1]),
    "shifted index": (lambda c: ZEROS[c.roll(1)], C, [4, 1, 2, 3]),
    "take": (lambda c: torch.take(ZEROS, c), C, ROW),
    "bucketize": (lambda x: torch.bucketize(x, torch.zeros(3)), z, ROW),
    "searchsorted": (lambda x: torch.searchsorted(torch.zeros(3), x), z, ROW),
    "gather": (lambda c: torch.zeros(B, 3).gather(1, c[:, None]), C, ROW),
    "embedding": (lambda c: F.embedding(c, ZEROS), C, ROW),
    "one-hot": (lambda c: F.one_hot(c, 3).float() @ ZEROS, C, ROW),
    "detached": (lambda x: x.detach().clone(), z, ROW),
    "custom function": (_Double.apply, z, ROW),
    "unbind and stack": (lambda x: torch.stack([0 * part for part in x]), z, ROW),
    "map over rows": (lambda x: torch.vmap(lambda part: 0 * part)(x), z, ROW),
    "Cholesky": (lambda x: torch.linalg.cholesky(torch.diag_embed(x.exp())), Z, ROW),
    "multivariate normal": (
        lambda x: MultivariateNormal(torch.zeros(3), torch.eye(3), validate_args=False).log_prob(x),
        Z,
        ROW,
    ),
    "dropout": (F.dropout, z, ROW),
    "noise of the shape": (lambda x: torch.randn_like(x), z, [0] * 4),
    "zeros of the shape": (lambda x: torch.zeros_like(x) + x.new_ones(B), z, [0] * 4),
    "noise with a location": (lambda x: torch.normal(x, torch.ones(B)), z, ROW),
    "write by a mask": (written_by_a_mask, z, ROW),
    "mask selection": (lambda x: x[x > 0].sum().expand(B), z, ALL),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_are_followed_through_operations(name: str) -> None:
    function, value, expected = CASES[name]
    value = value.clone()
    with torch.no_grad(), FollowDependence() as dependence:
        dependence.label(value, row_labels(B, -value.dim()))
        labels = dependence.labels(function(value))
    rows = torch.zeros(B, 1) if labels is None else labels.reshape(B, -1)
    assert not dependence.is_unknown
    assert bool((rows == rows[:, :1]).all())
    assert rows[:, 0].tolist() == expected


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).any()),
        lambda x: range(int(x[0])),
    ],
)
def test_conversion_of_a_draw_to_a_number_is_noticed(convert: Callable[[Tensor], Any]) -> None:
    value, other = z.clone(), z.clone()
    with torch.no_grad(), FollowDependence() as dependence:
        dependence.label(value)
        convert(other)
        assert not dependence.is_unknown
        convert(value)
        assert dependence.is_unknown


def test_missing_values_of_the_data_depend_on_nothing() -> None:
    value, x = Z.clone(), torch.full((B, 3), torch.nan)
    with torch.no_grad(), FollowDependence() as dependence:
        dependence.label(value, row_labels(B, -2))
        assert dependence.labels(torch.stack([x, x]).sum(0)) is None
        labels = dependence.labels((value + x).sum(-1))
    assert labels is not None
    assert labels.tolist() == ROW


def test_the_program_s_tensors_are_not_changed() -> None:
    norm, value = nn.BatchNorm1d(3), Z.clone()
    with torch.no_grad(), FollowDependence() as dependence:
        dependence.label(value, row_labels(B, -2))
        result = norm(value)
    assert torch.equal(value, Z)
    assert bool(result.isfinite().all())
    assert bool(norm.running_mean.isfinite().all())  # type: ignore[union-attr]
