"""Figures of a fit, read back and rendered without warnings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from ppl_lvm.report.figures import arrays as pictures
from ppl_lvm.report.figures.style import COLORS, WIDTH, thin
from ppl_lvm.report.figures.training import training_curve

DRAW = np.random.default_rng(0)


def _axes(figure: Figure) -> Axes:
    return figure.axes[0]


def _texts(figure: Figure) -> str:
    texts = [figure.get_suptitle()]
    texts += [text.get_text() for axes in figure.axes for text in axes.texts]
    texts += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return "\n".join(texts)


def _tiles(figure: Figure, shape: tuple[int, int], columns: int) -> list[Any]:
    """The pictures of a mosaic, read back."""
    array = _axes(figure).images[0].get_array()
    assert array is not None
    image = np.ma.filled(array.astype(float), np.nan)
    H, W, gap = *shape, max(1, shape[0] // 8)
    rows = (image.shape[0] + gap) // (H + gap)
    tops, lefts = (H + gap) * np.arange(rows), (W + gap) * np.arange(columns)
    return [image[top : top + H, left : left + W] for top in tops for left in lefts]


def _check(figure: Figure, tmp_path: Path) -> Any:
    """The figure has a title, fits a phone, and is not empty."""
    pictures.save(figure, tmp_path / "picture.png")
    pixels = imread(tmp_path / "picture.png")[..., :3]
    assert figure.get_suptitle()
    assert figure.get_figwidth() == WIDTH
    assert pixels.shape[1] == 720
    assert pixels.std() > 0.02
    return pixels


def _history(steps: int) -> dict[str, list[float]]:
    bound = -18 - 40 * np.exp(-np.arange(steps) / 20) + 0.1 * DRAW.normal(size=steps)
    return {
        "bound": bound.tolist(),
        "seconds": (0.01 * np.arange(1, steps + 1)).tolist(),
        "validation_step": list(range(50, steps + 1, 50)),
        "validation_bound": (bound[49::50] - 1).tolist(),
    }


def test_training_curve_shows_bounds_at_their_steps(tmp_path: Path) -> None:
    history = _history(400)
    figure = training_curve(history)
    _check(figure, tmp_path)
    raw, mean, held_out = _axes(figure).get_lines()
    assert np.array_equal(raw.get_ydata(), history["bound"])
    assert np.array_equal(raw.get_xdata(), np.arange(1, 401))
    assert np.asarray(mean.get_ydata())[-1] == pytest.approx(np.mean(history["bound"][-8:]))
    assert np.array_equal(held_out.get_xdata(), history["validation_step"])
    assert _axes(figure).get_ylabel() == "nats per row"
    assert _axes(figure).get_xlabel() == "step (4 s in all)"


def test_training_curve_is_not_flattened_by_its_first_steps(tmp_path: Path) -> None:
    figure = training_curve(_history(2000))
    low, high = _axes(figure).get_ylim()
    assert -25 < low < -18 < high < -16
    assert "starts below the picture, at -5" in _texts(figure)


@pytest.mark.parametrize(
    "bound", [[], [-3.0], [-3.0, -2.0], [-1e9, float("nan"), -2.0], [-1.0] * 99]
)
def test_training_curve_accepts_any_length(tmp_path: Path, bound: list[float]) -> None:
    figure = training_curve({"bound": bound})
    _check(figure, tmp_path)
    assert _axes(figure).get_xlabel() == "step"


def _mixture(P: int, K: int = 2) -> dict[str, Any]:
    root = DRAW.normal(size=(K, P, P))
    return {
        "x": DRAW.normal(size=(200, P)) @ np.diag(np.arange(1.0, P + 1)),
        "responsibilities": DRAW.dirichlet(np.ones(K), size=200),
        "means": DRAW.normal(size=(K, P)),
        "covariances": root @ root.transpose(0, 2, 1) + 0.1 * np.eye(P),
        "weights": np.full(K, 1 / K),
    }


def test_mixture_ellipses_match_the_projected_covariance() -> None:
    """Samples of a component, projected: their moments are those of its drawn 1-sd ellipse."""
    inputs = _mixture(P=4, K=1)
    figure = pictures.mixture(**inputs)
    one, two = _axes(figure).get_lines()
    x = inputs["x"]
    _, _, axes = np.linalg.svd((x - x.mean(axis=0)) / x.std(axis=0), full_matrices=False)
    draws = DRAW.multivariate_normal(inputs["means"][0], inputs["covariances"][0], size=200_000)
    projected = (draws - x.mean(axis=0)) / x.std(axis=0) @ axes[:2].T
    ring, wide = np.array(one.get_data())[:, :-1], np.array(two.get_data())[:, :-1]  # (2, 99)
    middle = ring.mean(axis=1)
    # Points √Λ u of a ring have the second moment Λ/2.
    spread = 2 * np.cov(ring, bias=True)
    expected = np.cov(projected.T)
    assert np.allclose(np.abs(middle), np.abs(projected.mean(axis=0)), atol=0.05)
    assert np.linalg.det(spread) == pytest.approx(np.linalg.det(expected), rel=0.02)
    assert np.trace(spread) == pytest.approx(np.trace(expected), rel=0.02)
    assert np.allclose(wide - middle[:, None], 2 * (ring - middle[:, None]))


def test_mixture_of_two_columns_is_not_projected(tmp_path: Path) -> None:
    inputs = _mixture(P=2, K=1)
    figure = pictures.mixture(**inputs, names=["height (cm)", "weight (kg)"])
    _check(figure, tmp_path)
    ring = np.array(_axes(figure).get_lines()[0].get_data())[:, :-1]
    assert np.allclose(ring.mean(axis=1), inputs["means"][0])
    assert np.allclose(2 * np.cov(ring, bias=True), inputs["covariances"][0])
    assert _axes(figure).get_ylabel() == "weight (kg)"
    chosen = pictures.mixture(**_mixture(P=3), columns=(2, 0))
    assert _axes(chosen).get_xlabel() == "column 2"  # numbered as in messages and tensors


def test_mixture_points_have_the_color_of_their_component() -> None:
    inputs = _mixture(P=3)
    inputs["responsibilities"] = np.tile([0.0, 1.0], (200, 1))
    colors = _axes(pictures.mixture(**inputs)).collections[0].get_facecolor()
    expected = [int(COLORS[1][k : k + 2], 16) / 255 for k in (1, 3, 5)]
    assert np.allclose(np.asarray(colors)[:, :3], expected)


@pytest.mark.parametrize(("P", "K"), [(1, 2), (2, 1), (5, 3), (3, 12)])
def test_mixture_figure_accepts_any_size(tmp_path: Path, P: int, K: int) -> None:
    figure = pictures.mixture(**_mixture(P, K))
    _check(figure, tmp_path)
    assert f"{K - 1}: {1 / K:.0%}" in _texts(figure)  # numbered as in messages and tensors


def test_mixture_figure_marks_empty_components(tmp_path: Path) -> None:
    inputs = _mixture(P=3, K=3)
    inputs["weights"] = np.array([0.6, 0.399, 0.001])
    inputs["covariances"][1] = 0
    figure = pictures.mixture(**inputs)
    _check(figure, tmp_path)
    assert "1 component has a weight below 1%" in _texts(figure)
    assert "2: " not in _texts(figure)


def test_sampled_pictures_form_a_grid_on_one_scale(tmp_path: Path) -> None:
    x = DRAW.uniform(size=(11, 12))
    figure = pictures.samples(x, image_shape=(3, 4))
    _check(figure, tmp_path)
    shown = _tiles(figure, (3, 4), columns=8)
    assert np.array_equal(shown[9], x[9].reshape(3, 4))
    assert np.isnan(shown[11]).all()  # eleven pictures in two rows of eight
    assert _axes(figure).images[0].get_clim() == (x.min(), x.max())
    many = _axes(pictures.samples(DRAW.uniform(size=(99, 3, 4)))).images[0].get_array()
    assert many is not None
    assert many.shape == (5 * 4 - 1, 8 * 5 - 1)  # forty of them, a gap of one between


@pytest.mark.parametrize("P", [1, 2, 5])
@pytest.mark.parametrize("compared", [True, False])
def test_sampled_points_are_drawn_with_and_without_data(
    tmp_path: Path, P: int, compared: bool
) -> None:
    data = DRAW.normal(size=(50, P)) if compared else None
    figure = pictures.samples(DRAW.normal(size=(60, P)), data=data)
    _check(figure, tmp_path)
    assert ("data" in _texts(figure).splitlines()) == compared


def test_reconstructed_pictures_are_below_their_originals(tmp_path: Path) -> None:
    x, back = DRAW.uniform(size=(2, 12, 6))
    figure = pictures.reconstructions(x, back, image_shape=(2, 3))
    _check(figure, tmp_path)
    shown = _tiles(figure, (2, 3), columns=10)
    assert np.array_equal(shown[4].ravel(), x[4])
    assert np.array_equal(shown[14].ravel(), back[4])
    assert [t.get_text() for t in _axes(figure).get_yticklabels()] == ["data", "model"]


@pytest.mark.parametrize("P", [1, 4, 30])
def test_exact_reconstructions_are_on_the_line(tmp_path: Path, P: int) -> None:
    x = DRAW.normal(size=(40, P)) * 100 + 7
    x[:, 0] = 7.0  # a constant column has no standard deviation
    figure = pictures.reconstructions(x, x)
    _check(figure, tmp_path)
    for points in _axes(figure).collections:
        offsets = np.asarray(points.get_offsets())
        assert np.allclose(offsets[:, 0], offsets[:, 1])


def test_latent_plane_shows_the_latents_that_vary_most(tmp_path: Path) -> None:
    codes = DRAW.normal(size=(80, 4)) * np.array([0.01, 2.0, 0.1, 1.0])
    figure = pictures.latent_plane(codes)
    _check(figure, tmp_path)
    assert np.array_equal(np.asarray(_axes(figure).collections[0].get_offsets()), codes[:, [1, 3]])
    assert _axes(figure).get_xlabel().startswith("z[1] (variance ")
    assert _axes(figure).get_ylabel().startswith("z[3] (variance ")
    assert "the 2 of 4 latents" in _texts(figure)


@pytest.mark.parametrize("classes", [1, 3, 10, 28])
def test_latent_plane_distinguishes_classes_by_color_and_marker(
    tmp_path: Path, classes: int
) -> None:
    labels = np.arange(300) % classes
    names = [f"class {k}" for k in range(classes)]
    figure = pictures.latent_plane(DRAW.normal(size=(300, 2)), labels, names)
    _check(figure, tmp_path)
    drawn = _axes(figure).collections
    signs = {
        (tuple(np.asarray(c.get_facecolor())[0]), np.asarray(c.get_paths()[0].vertices).shape)
        for c in drawn
    }
    assert len(signs) == classes
    assert _texts(figure).splitlines()[-classes:] == names
    assert len(_axes(figure).texts) == (classes if classes > len(COLORS) else 0)
    box = _axes(figure).get_position()  # the legend leaves the plot its room
    assert box.height * figure.get_figheight() > 2.5


def test_latent_plane_uses_a_color_scale_for_many_classes_and_real_labels(tmp_path: Path) -> None:
    for labels in (np.arange(100), DRAW.normal(size=100)):
        figure = pictures.latent_plane(DRAW.normal(size=(100, 2)), labels)
        _check(figure, tmp_path)
        assert figure.axes[1].get_ylabel() == "label"


def test_latent_plane_of_one_latent_has_random_heights(tmp_path: Path) -> None:
    figure = pictures.latent_plane(DRAW.normal(size=(100, 1)), np.arange(100) % 2)
    _check(figure, tmp_path)
    assert len(_axes(figure).get_yticks()) == 0


def test_latent_plane_thins_large_data() -> None:
    figure = pictures.latent_plane(np.zeros((20_000, 2)))
    assert len(np.asarray(_axes(figure).collections[0].get_offsets())) == thin(20_000).size
    assert thin(20_000).size == 5000


def test_save_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    figure = pictures.latent_plane(np.random.default_rng(0).normal(size=(10, 2)))
    pictures.save(figure, path)
    before = path.read_bytes()
    pictures.save(figure, path)
    assert path.read_bytes() == before
    figure.suptitle("$\\broken{$")
    with pytest.raises(ValueError):
        pictures.save(figure, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["picture.png"]


def test_figures_do_not_register_with_pyplot(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()  # of other tests
    pictures.save(training_curve({"bound": [-1.0, -0.5]}), tmp_path / "p.png")
    assert plt.get_fignums() == before
