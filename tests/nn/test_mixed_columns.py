"""MixedColumns: embeddings, numbers, missing values."""

import pytest
import torch
from torch import nn

from ppl_lvm.nn import MLP, MixedColumns

X = torch.tensor([[0.5, 2.0, 1.0], [torch.nan, 0.0, torch.nan]])  # a number, 3 and 2 categories


def test_mixed_columns_concatenates_embeddings_and_numbers() -> None:
    net = MixedColumns(3, {1: 3, 2: 2}, size=4)
    first, second = (table.get_parameter("weight") for table in net.vectors.values())
    out = net(X)
    assert out.shape == (2, net.width) == (2, 1 + 4 + 4)
    assert torch.equal(out[0], torch.cat([X[0, :1], first[3], second[2]]))
    assert torch.equal(out[1], torch.cat([torch.zeros(1), first[1], second[0]]))


def test_mixed_columns_takes_integers_and_leading_dimensions() -> None:
    net = MixedColumns(2, {0: 3, 1: 3})
    x = torch.randint(3, (5, 4, 2))
    assert torch.equal(net(x), net(x.double()))
    assert nn.Sequential(net, MLP(net.width, 6))(x).shape == (5, 4, 6)


def test_mixed_columns_equal_categories_share_vector_and_gradient() -> None:
    net = MixedColumns(1, {0: 3}, size=2)
    net(torch.tensor([[1.0], [1.0], [2.0]])).sum().backward()
    table = next(iter(net.vectors.values()))
    assert isinstance(table, nn.Embedding)
    assert table.weight.grad is not None
    assert table.weight.grad[:, 0].tolist() == [0.0, 0.0, 2.0, 1.0]


@pytest.mark.parametrize("code", [3.0, -2.0])
def test_mixed_columns_rejects_an_unknown_category(code: float) -> None:
    with pytest.raises(ValueError, match=rf"Column 0 holds the code {code:.0f}, .* 0 to 2"):
        MixedColumns(1, {0: 3})(torch.tensor([[code]]))


def test_mixed_columns_rejects_invalid_constructor_arguments() -> None:
    with pytest.raises(ValueError, match="columns are numbered 0 to 1"):
        MixedColumns(2, {2: 3})
    with pytest.raises(ValueError, match="takes 2 columns"):
        MixedColumns(2, {0: 3})(torch.zeros(4, 3))
