"""The perceptron against its formula written out."""

import pytest
import torch

from ppl_lvm.nn import MLP


def test_mlp_equals_the_formula() -> None:
    net = MLP(3, 2, hidden=(5, 4), activation="tanh")
    W1, b1, W2, b2, W3, b3 = net.parameters()
    x = torch.randn(7, 3)
    h = torch.tanh(torch.tanh(x @ W1.T + b1) @ W2.T + b2)
    torch.testing.assert_close(net(x), h @ W3.T + b3)


def test_mlp_without_hidden_layers_is_linear() -> None:
    net = MLP(3, 2, hidden=())
    x, y = torch.randn(2, 4, 3)
    torch.testing.assert_close(net(x + y) + net(torch.zeros(4, 3)), net(x) + net(y))


def test_mlp_layer_norm_normalizes_each_row() -> None:
    net = MLP(3, 2, norm="layer")
    normed = net.layers[1](net.layers[0](torch.randn(7, 3)))
    torch.testing.assert_close(normed.mean(-1), torch.zeros(7), atol=1e-5, rtol=0)


def test_mlp_takes_leading_dimensions_and_integers() -> None:
    assert MLP(3, 2)(torch.ones(6, 5, 3, dtype=torch.long)).shape == (6, 5, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "rellu"}, "Unknown activation 'rellu'. Available: "),
        ({"norm": "group"}, "Unknown norm 'group'. Available: "),
        ({"hidden": (0,)}, r"hidden=\(0,\)"),
    ],
)
def test_mlp_rejects_invalid_constructor_arguments(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(3, 2, **settings)
