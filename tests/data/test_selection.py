"""Row subsets: size, order, seed."""

import pytest
import torch

from ppl_lvm.data import load_data, selection

X = torch.arange(30.0)[:, None]


@pytest.mark.parametrize(("count", "expected"), [(4, 4), (30, 30), (50, 30)])
def test_first_rows_returns_at_most_all_rows(count: int, expected: int) -> None:
    (rows,) = selection.first_rows(load_data(X), count)
    assert torch.equal(rows, X[:expected])


def test_initialization_rows_are_sampled_from_torchs_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = load_data(X)
    assert torch.equal(selection.initialization_rows(data)[0], X)
    monkeypatch.setattr(selection, "MAX_INITIALIZATION_ROWS", 10)
    torch.manual_seed(0)
    (one,) = selection.initialization_rows(data)
    (other,) = selection.initialization_rows(data)
    torch.manual_seed(0)
    (again,) = selection.initialization_rows(data)
    assert one.shape == (10, 1)
    assert (one.diff(dim=0) > 0).all()
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_sample_rows_depends_only_on_its_seed() -> None:
    data = load_data(X)
    assert selection.sample_rows(data, 30, seed=0) is data
    few = [selection.sample_rows(data, 8, seed=s).batch(torch.arange(8))[0] for s in (0, 0, 1)]
    assert torch.equal(few[0], few[1])
    assert not torch.equal(few[0], few[2])
    assert (few[0].diff(dim=0) > 0).all()
