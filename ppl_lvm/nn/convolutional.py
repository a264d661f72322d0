"""Small convolutional encoders and decoders of images.

Images are rows (…, C·H·W), as `load_data` returns them and as likelihoods with one event dimension
take them, or (…, C, H, W), from 8 x 8 pixels up. Codes are rows (…, D).
"""

import math
from itertools import pairwise

from torch import Tensor, nn

from ppl_lvm.core.validate import Count
from ppl_lvm.nn.mlp import ACTIVATIONS, choose

NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm2d, "layer": nn.GroupNorm}
Shape = tuple[int, ...]


class ConvEncoder(nn.Module):
    """h₀ = image, hᵢ = activation(norm(conv(hᵢ₋₁))), output W vec(h) + b.

    Every convolution is 3 x 3 with stride 2: it halves height and width, rounding up.

    Args:
        image_shape: (H, W), or (C, H, W) for images of C channels.
        outputs: length of an output row: 2 D for an `AmortizedNormal` of D latents.
        channels: of the layers, first to last.
        activation: one of `ppl_lvm.nn.mlp.ACTIVATIONS`.
        norm: "layer" (per image), "batch" (each channel over the batch), or None.

    Raises:
        ValueError: for an unknown name or an invalid size; from a call, for rows of another length.
    """

    def __init__(
        self,
        image_shape: Shape,
        outputs: Count,
        channels: Shape = (16, 32),
        activation: str = "relu",
        norm: str | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = as_image(image_shape)
        sizes = _halved(self.image_shape[1:], len(channels))
        widths = (self.image_shape[0], *channels)
        _check(widths, outputs)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            layers += _after(after, activation, norm)
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(widths[-1] * math.prod(sizes[-1]), outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (..., C·H·W) or (..., C, H, W) -> rows (..., outputs)."""
        leading, images = _leading(x, self.image_shape)
        out: Tensor = self.layers(images.to(next(self.parameters()).dtype))
        return out.reshape(*leading, -1)


class ConvDecoder(nn.Module):
    """h₀ = activation(W z + b), hᵢ = activation(norm(convᵀ(hᵢ₋₁))), the last layer linear.

    Images grow through the sizes that `ConvEncoder` shrinks through. The outputs are unbounded
    rows: logits of a Bernoulli, means of a normal.

    Args:
        inputs: length of a code, D.
        image_shape: (H, W), or (C, H, W); C outputs per pixel.
        channels: of the layers, first to last.
        activation, norm: as `ConvEncoder`.

    Raises:
        ValueError: for an unknown name or an invalid size.
    """

    def __init__(
        self,
        inputs: Count,
        image_shape: Shape,
        channels: Shape = (32, 16),
        activation: str = "relu",
        norm: str | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = as_image(image_shape)
        sizes = _halved(self.image_shape[1:], len(channels))[::-1]
        widths = (*channels, self.image_shape[0])
        _check(widths, inputs)
        smallest = (widths[0], *sizes[0])
        self.start = nn.Sequential(nn.Linear(inputs, math.prod(smallest)), _activation(activation))
        layers: list[nn.Module] = [nn.Unflatten(1, smallest)]
        for i, (before, after) in enumerate(pairwise(widths)):
            # Stride 2 gives 2 s - 1 pixels; one more where the target size is even.
            more = tuple(n - (2 * o - 1) for o, n in zip(sizes[i], sizes[i + 1], strict=True))
            layers.append(
                nn.ConvTranspose2d(
                    before, after, 3, stride=2, padding=1, output_padding=(more[0], more[1])
                )
            )
            if i < len(widths) - 2:
                layers += _after(after, activation, norm)
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Codes (..., D) -> images as rows (..., C·H·W)."""
        out: Tensor = self.layers(self.start(z.reshape(-1, z.shape[-1])))
        return out.reshape(*z.shape[:-1], -1)


def as_image(shape: Shape) -> tuple[int, int, int]:
    """(C, H, W) of a shape that may omit C = 1."""
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"An image has the shape (H, W) or (C, H, W); got {tuple(shape)}.")
    channels, height, width = (1, *shape) if len(shape) == 2 else shape
    return channels, height, width


def _activation(name: str) -> nn.Module:
    return choose("activation", name, ACTIVATIONS)()


def _after(channels: int, activation: str, norm: str | None) -> list[nn.Module]:
    """Norm and activation of a convolution."""
    layers: list[nn.Module] = []
    if norm is not None:
        layer = choose("norm", norm, NORMS)
        layers.append(layer(1, channels) if layer is nn.GroupNorm else layer(channels))
    return [*layers, _activation(activation)]


def _halved(size: Shape, times: int) -> list[Shape]:
    """Height and width before each of `times` layers, and after the last."""
    sizes = [size]
    for _ in range(times):
        sizes.append(tuple((s + 1) // 2 for s in sizes[-1]))
    return sizes


def _check(widths: Shape, length: int) -> None:
    if len(widths) < 2 or min(widths) < 1 or length < 1:
        raise ValueError(
            f"A convolutional network needs at least one layer and sizes of at least 1; these are "
            f"channels {widths} and codes of length {length}."
        )


def _leading(x: Tensor, shape: tuple[int, int, int]) -> tuple[Shape, Tensor]:
    """The dimensions left of the images, and the images as one batch (n, C, H, W)."""
    channels, height, width = shape
    if x.shape[-1] == math.prod(shape):
        return tuple(x.shape[:-1]), x.reshape(-1, *shape)
    if tuple(x.shape[-3:]) == shape:
        return tuple(x.shape[:-3]), x.reshape(-1, *shape)
    if channels == 1 and tuple(x.shape[-2:]) == (height, width):
        return tuple(x.shape[:-2]), x.reshape(-1, *shape)
    raise ValueError(
        f"Images of shape {shape} are rows of {math.prod(shape)} columns, got {tuple(x.shape)}. "
        "Give image_shape=(H, W) or (C, H, W) as in the data."
    )
