"""Convolutional networks: their formula, their sizes, and what they take."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from pyro.optim import Adam
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.nn import ConvDecoder, ConvEncoder


def test_conv_encoder_equals_the_formula() -> None:
    net = ConvEncoder((8, 6), 5, channels=(3, 4), activation="tanh")
    C1, b1, C2, b2, W, b = net.parameters()
    x = torch.randn(7, 48)
    h = torch.tanh(F.conv2d(x.reshape(7, 1, 8, 6), C1, b1, stride=2, padding=1))
    h = torch.tanh(F.conv2d(h, C2, b2, stride=2, padding=1))
    assert h.shape == (7, 4, 2, 2)
    torch.testing.assert_close(net(x), h.flatten(1) @ W.T + b)


def test_conv_decoder_equals_the_formula() -> None:
    net = ConvDecoder(5, (8, 6), channels=(4, 3), activation="tanh")
    W, b, C1, b1, C2, b2 = net.parameters()
    z = torch.randn(7, 5)
    h = torch.tanh(z @ W.T + b).reshape(7, 4, 2, 2)
    h = torch.tanh(F.conv_transpose2d(h, C1, b1, 2, 1, output_padding=(1, 0)))
    assert h.shape == (7, 3, 4, 3)
    h = F.conv_transpose2d(h, C2, b2, 2, 1, output_padding=(1, 1))
    torch.testing.assert_close(net(z), h.reshape(7, 48))


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (3, 32, 32), (2, 7, 5), (5, 1)])
@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_conv_decoder_restores_every_image_size(shape: Any, norm: str | None) -> None:
    pixels = int(torch.tensor(shape).prod())
    channels = (4, 6, 5)
    encoder = ConvEncoder(shape, 9, channels, norm=norm)
    decoder = ConvDecoder(9, shape, channels[::-1], norm=norm)
    if norm == "batch":
        encoder.eval()  # one pixel a channel has no variance
        decoder.eval()
    x = torch.rand(3, 2, pixels)  # particles, rows
    code = encoder(x)
    assert code.shape == (3, 2, 9)
    assert decoder(code).shape == x.shape
    images = x.reshape(3, 2, *shape)
    torch.testing.assert_close(encoder(images), code)
    if len(shape) == 2:
        torch.testing.assert_close(encoder(images.unsqueeze(-3)), code)


def test_conv_layer_norm_depends_on_one_image_only() -> None:
    net = ConvEncoder((8, 8), 2, norm="layer")
    x = torch.rand(5, 64)
    torch.testing.assert_close(net(x)[:1], net(x[:1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvEncoder((8,), 2), r"\(H, W\) or \(C, H, W\); got \(8,\)"),
        (lambda: ConvEncoder((8, 8), 2, channels=()), "at least one layer"),
        (lambda: ConvEncoder((8, 8), 2, norm="group"), "Unknown norm 'group'. Available: "),
        (lambda: ConvDecoder(0, (8, 8)), "inputs=0 is too small"),
        (lambda: ConvDecoder(2, (8, 8), activation="relo"), "Unknown activation 'relo'"),
        (lambda: ConvEncoder((8, 8), 2)(torch.zeros(3, 63)), r"rows of 64 columns, got \(3, 63\)"),
    ],
)
def test_conv_networks_reject_invalid_constructor_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class _Pictures(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.decoder: nn.Module = ConvDecoder(4, (8, 8), (8, 8))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


@pytest.mark.slow
def test_guide_trains_with_a_conv_encoder() -> None:
    x = (torch.tensor(load_digits().data[:128]) >= 8).float()
    model = _Pictures()
    guide = AmortizedNormal(model, x, encoder=ConvEncoder((8, 8), 8, (8, 8)))
    svi = SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x) / 128 for _ in range(160)]
    p = x.mean(0).clamp(1e-6, 1 - 1e-6)
    apart = -(x * p.log() + (1 - x) * (1 - p).log()).sum(-1).mean()
    assert losses[-1] < losses[0] - 15
    assert losses[-1] < apart  # better than pixels on their own
