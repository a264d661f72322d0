"""Colors, also as seen with color blindness; axes."""

import itertools
import re
from importlib import resources

import numpy as np
import pytest

from ppl_lvm.core.types import Array
from ppl_lvm.report.figures.style import COLORS, GRAY, describe, description, plot, view

# Machado, Oliveira, Fernandes (2009), severity 1, linear RGB. https://doi.org/10.1109/TVCG.2009.113
SIMULATIONS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
XYZ = np.array([[0.4124, 0.3576, 0.1805], LUMINANCE, [0.0193, 0.1192, 0.9505]])


def linear(color: str) -> Array:
    rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """Contrast ratio of WCAG 2."""
    low, high = sorted(float(linear(c) @ LUMINANCE) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: Array) -> Array:
    t = XYZ @ rgb.clip(0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def variables(scheme: str) -> dict[str, str]:
    """Colors of the page in the light or the dark scheme, by name."""
    css = resources.files("ppl_lvm.report").joinpath("page.css").read_text()
    light, _, rest = css.partition("prefers-color-scheme: dark")
    dark = rest.partition("\n}")[0]
    return dict(re.findall(r"--(\w+): (#\w+)", light if scheme == "light" else dark))


def full(color: str) -> str:
    return color if len(color) == 7 else "#" + "".join(2 * c for c in color[1:])


@pytest.mark.parametrize("background", ["#FFFFFF", "#16181C"])
def test_colors_of_figures_have_contrast_3_on_both_backgrounds(background: str) -> None:
    assert min(contrast(c, background) for c in (*COLORS, GRAY)) >= 3
    assert contrast("#E69F00", "#FFFFFF") < 3  # a color that fails


@pytest.mark.parametrize("kind", SIMULATIONS)
def test_colors_are_told_apart_with_color_blindness(kind: str) -> None:
    seen = [lab(SIMULATIONS[kind] @ linear(c)) for c in COLORS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15
    red, green = (lab(SIMULATIONS["deuteranopia"] @ linear(c)) for c in ("#8F7B1F", "#6F8A1F"))
    assert np.linalg.norm(red - green) < 15  # a pair that fails


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_of_the_page_have_contrast_4_5(scheme: str) -> None:
    colors = {name: full(color) for name, color in variables(scheme).items()}
    texts = ("text", "dim", "good", "warning", "bad", "unknown")
    assert set(texts) < set(colors)
    for name in texts:
        for background in ("page", "card"):
            assert contrast(colors[name], colors[background]) >= 4.5, (name, background)


def test_axes_have_no_offset_and_figures_keep_their_finding() -> None:
    figure, axes = plot("Offsets")
    axes.plot([0, 1], [-19.76, -19.76 + 1e-8])
    figure.canvas.draw()
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert description(figure) == ("", "")
    assert description(describe(figure, "Rose.", "Higher is better.")) == (
        "Rose.",
        "Higher is better.",
    )


def test_principal_axes_do_not_depend_on_units() -> None:
    x = np.random.default_rng(0).normal(size=(200, 3)) @ [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    projections = []
    for units in (1.0, np.array([1.0, 1000.0, 0.01])):
        center, W, _ = view(x * units, None, None)
        projections.append((x * units - center) @ W)
    np.testing.assert_allclose(*projections, atol=1e-6)
