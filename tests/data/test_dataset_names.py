"""Sets that go by a name: what they hold, and every misspelling with its remedy."""

import pytest
import torch

from ppl_lvm.data import load_data


def test_iris_is_fishers_with_species_kept_apart() -> None:
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


def test_digits_binarise_at_the_threshold() -> None:
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
def test_shipped_tables(name: str, shape: tuple[int, int], classes: int) -> None:
    data = load_data(name)
    assert data.tensors[0].shape == shape
    assert data.label_names is not None
    assert len(data.label_names) == classes


@pytest.mark.parametrize("name", ["moons", "blobs", "swiss_roll", "pinwheel"])
def test_generators_repeat_under_one_seed_and_differ_under_another(name: str) -> None:
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


def test_columns_of_a_named_set() -> None:
    data = load_data("iris", columns=["petal width (cm)", "petal length (cm)"])
    assert torch.equal(data.tensors[0], load_data("iris").tensors[0][:, [3, 2]])
    assert data.labels is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("irsi", "did you mean 'iris'"),
        ("elephants", "there are iris, digits"),
        ("digits(binarise=8)", "did you mean 'binarize'"),
        ("digits(binarize=99)", "at most 16"),
        ("iris(n=3)", "takes no arguments"),
        ("moons(500)", "name each argument"),
        ("moons(n=-1)", "n=-1 must be a whole number, 1 or more"),
        ("moons(n=2.5)", "n=2.5 must be a whole number"),
        ("moons(noise=-0.1)", "noise=-0.1 must be a number, 0 or more"),
        ("moons(n=__import__('os').getpid())", "must be a plain number"),
        ("moons(**{'n': 3})", "name each argument"),
        ("moons(n=3", "not of the form"),
    ],
)
def test_named_set_faults(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_data(text)
    assert said in str(caught.value)
