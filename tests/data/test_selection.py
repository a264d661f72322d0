"""Parts of the data, their fingerprints, and what the rows are said to be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppl_lvm.data import load_data


def test_split_parts_every_row_once_and_keeps_its_label_and_place() -> None:
    data = load_data("iris")
    train, test = data.split(0.2, seed=3)
    assert (len(train), len(test)) == (120, 30)
    assert train.rows is not None
    assert test.rows is not None
    assert torch.cat([train.rows, test.rows]).sort().values.tolist() == list(range(150))
    row = int(test.rows[4])
    assert torch.equal(test.batch(torch.tensor([4]))[0], data.tensors[0][[row]])
    assert test.labels is not None
    assert data.labels is not None
    assert test.labels[4] == data.labels[row]
    assert f"row {row + 1} " in test.locate(4)
    deeper, _ = test.split(10, seed=0)
    assert torch.equal(deeper.tensors[0], deeper.batch(torch.arange(20))[0])


def test_split_depends_on_its_seed_alone() -> None:
    data = load_data("iris")
    torch.manual_seed(1)
    first = data.split(30, seed=0)[1]
    torch.manual_seed(2)
    again, other = data.split(30, seed=0)[1], data.split(30, seed=1)[1]
    assert torch.equal(first.tensors[0], again.tensors[0])
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != other.fingerprint()
    assert first.fingerprint() != data.fingerprint()


@pytest.mark.parametrize("held_out", [0, 150, -1, 1.0, 0.001, True, "half"])
def test_split_refuses_an_empty_side(held_out: Any) -> None:
    with pytest.raises(ValueError, match="held_out="):
        load_data("iris").split(held_out, seed=0)


def test_data_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        load_data("iris").name = "other"  # type: ignore[misc]


def test_loading_data_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="loaded already"):
        load_data(load_data("iris"))


def test_rows_are_said_to_be_pictures(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 12)), y=np.zeros((3, 8)))
    source = str(tmp_path / "x.npz")
    assert load_data(source, image_shape=(3, 4)).image_shape == (3, 4)  # x alone
    whole = load_data(source, image_shape=(4, 5))  # x and y side by side
    assert whole.image_shape == (4, 5)
    assert whole.source is not None
    again = load_data(**json.loads(json.dumps(whole.source)))
    assert again.image_shape == (4, 5)
    assert load_data(torch.zeros(3, 6), image_shape=(2, 3)).subset(torch.arange(2)).image_shape
    for wrong in ((4, 4), (12,), (8, 1)):
        with pytest.raises(ValueError, match=r"does not suit rows of 12 and 8 numbers"):
            load_data(source, image_shape=wrong)  # type: ignore[arg-type]
