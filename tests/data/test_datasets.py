"""Named data sets: contents, generators, wrong names."""

import numpy as np
import pytest
import sklearn.datasets
import torch

from ppl_lvm.data import datasets, load_data


def test_iris_has_fishers_values_and_species_labels() -> None:
    data = load_data("iris")
    (x,) = data.tensors
    assert x.shape == (150, 4)
    assert x.dtype == torch.float32
    assert torch.allclose(x[0], torch.tensor([5.1, 3.5, 1.4, 0.2]))
    assert data.columns is not None
    assert data.columns[2] == "petal length (cm)"
    assert data.label_names == ["setosa", "versicolor", "virginica"]
    assert data.labels is not None
    assert data.labels.bincount().tolist() == [50, 50, 50]


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits"])
def test_sets_equal_those_of_scikit_learn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bunch = getattr(sklearn.datasets, f"load_{name}")()
    for installed in (True, False):  # the second time its files are elsewhere
        if not installed:
            monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        ours = datasets.call(name)
        assert np.array_equal(ours.values, bunch.data)
        assert ours.columns == tuple(map(str, bunch.feature_names))
        assert ours.labels is not None
        assert ours.labels.tolist() == [str(bunch.target_names[k]) for k in bunch.target]


def test_digits_binarize_at_the_threshold() -> None:
    gray, ink = load_data("digits"), load_data("digits(binarize=8)")
    assert gray.tensors[0].shape == (1797, 64)
    assert gray.tensors[0].max() == 16
    assert torch.equal(ink.tensors[0], (gray.tensors[0] >= 8).float())
    assert not torch.equal(ink.tensors[0], (gray.tensors[0] > 8).float())
    assert ink.image_shape == (8, 8)
    assert "row 1 (index 0), column 'pixel_1_2'" in ink.locate(0, 10)


@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("wine", (178, 13), 3), ("breast_cancer", (569, 30), 2)]
)
def test_shipped_tables_have_their_shapes_and_classes(
    name: str, shape: tuple[int, int], classes: int
) -> None:
    data = load_data(name)
    assert data.tensors[0].shape == shape
    assert data.label_names is not None
    assert len(data.label_names) == classes


@pytest.mark.parametrize("name", ["moons", "blobs", "swiss_roll", "pinwheel"])
def test_generators_depend_on_their_seed(name: str) -> None:
    first, again, other = (load_data(f"{name}(n=30, noise=0.2, seed={s})") for s in (1, 1, 2))
    assert len(first) == 30
    assert torch.equal(first.tensors[0], again.tensors[0])
    assert not torch.equal(first.tensors[0], other.tensors[0])
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_pinwheel_without_noise_lies_on_its_arms() -> None:
    data = load_data("pinwheel(n=40, components=4, noise=0)")
    x, k = data.tensors[0].double(), data.labels
    assert k is not None
    r = x.norm(dim=1)
    angle = 2 * torch.pi * k / 4 + 0.25 * r.exp()
    arm = torch.stack([r * angle.cos(), r * angle.sin()], dim=1)
    assert torch.allclose(x, arm, atol=1e-5)


def test_swiss_roll_labels_are_positions_without_names() -> None:
    data = load_data("swiss_roll(n=20)")
    assert data.label_names is None
    assert data.labels is not None
    assert data.labels.dtype == torch.float32


def test_named_set_columns_are_chosen_in_order() -> None:
    data = load_data("iris", columns=["petal width (cm)", "petal length (cm)"])
    assert torch.equal(data.tensors[0], load_data("iris").tensors[0][:, [3, 2]])
    assert data.labels is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("irsi", "Unknown data set 'irsi'"),
        ("irsi", "Did you mean iris"),
        ("elephants", "Available: bars, blobs, breast_cancer, digits"),
        ("digits(binarise=8)", "Did you mean binarize"),
        ("digits(binarize=99)", "at most 16"),
        ("iris(n=3)", "iris takes no 'n'"),
        ("moons(500)", "is not a name with literal keyword arguments"),
        ("moons(n=-1)", "moons: n=-1 is too small. Pass a whole number of at least 1."),
        ("moons(n=2.5)", "moons: n=2.5 is a float. Pass a whole number of at least 1."),
        ("moons(seed=-1)", "moons: seed=-1 is too small. Pass a whole number of at least 0"),
        ("moons(noise=-0.1)", "moons: noise=-0.1 is too small. Pass a number of at least 0."),
        ("moons(noise='much')", "moons: noise='much' is a str. Pass a number"),
        ("moons(n=__import__('os').getpid())", "literal keyword arguments"),
        ("moons(**{'n': 3})", "literal keyword arguments"),
        ("moons(n=3", "literal keyword arguments"),
    ],
)
def test_named_set_rejects_wrong_names_and_arguments(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_data(text)
    assert message in str(caught.value)


def test_bars_documents_have_their_length_and_topics() -> None:
    data = load_data("bars(n=400, size=4, length=60, seed=3)")
    x = data.tensors[0]
    assert data.image_shape == (4, 4)
    assert torch.equal(x.sum(1), torch.full((400,), 60.0))
    assert data.labels is not None
    for topic in range(8):  # documents that have most of a topic use its words most
        rows = x[data.labels == topic].mean(0).reshape(4, 4)
        line = rows[topic] if topic < 4 else rows[:, topic - 4]
        others = (rows.sum() - line.sum()) / 12
        assert line.mean() > 1.5 * others


def test_grouped_recovers_the_noise_of_its_regression_lines() -> None:
    x = load_data("grouped(n=6000, groups=3, noise=0.5, seed=0)").tensors[0].double().numpy()
    for g in range(3):
        rows = x[x[:, 0] == g]
        design = np.stack([np.ones(len(rows)), rows[:, 1]], 1)
        line, residual, *_ = np.linalg.lstsq(design, rows[:, 2], rcond=None)
        error = 0.5 / len(rows) ** 0.5
        tolerance = 5 * 0.25 * (2 / len(rows)) ** 0.5
        assert residual[0] / len(rows) == pytest.approx(0.25, abs=tolerance)
        assert abs(line[0] - 1) < 5
        assert error < 0.05
    sizes = np.bincount(x[:, 0].astype(int))
    assert (np.diff(sizes) < 0).all()
