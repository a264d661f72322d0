"""Some rows are rows of the data, in their order, as many as asked for and the same by seed."""

import pytest
import torch

from ppl_lvm.data import load_data
from ppl_lvm.data import selection as initialization_rows

X = torch.arange(30.0)[:, None]


@pytest.mark.parametrize(("count", "found"), [(4, 4), (30, 30), (50, 30)])
def test_the_first_rows(count: int, found: int) -> None:
    (rows,) = initialization_rows.first_rows(load_data(X), count)
    assert torch.equal(rows, X[:found])


def test_a_start_sees_so_many_rows_under_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(X)
    assert torch.equal(initialization_rows.initialization_rows(data)[0], X)
    monkeypatch.setattr(initialization_rows, "SOME", 10)
    torch.manual_seed(0)
    (one,) = initialization_rows.initialization_rows(data)
    (other,) = initialization_rows.initialization_rows(data)
    torch.manual_seed(0)
    (again,) = initialization_rows.initialization_rows(data)
    assert one.shape == (10, 1)
    assert (one.diff(dim=0) > 0).all()
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_at_most_so_many_do_not_depend_on_torchs_seed() -> None:
    data = load_data(X)
    assert initialization_rows.sample_rows(data, 30, seed=0) is data
    few = [
        initialization_rows.sample_rows(data, 8, seed=s).batch(torch.arange(8))[0]
        for s in (0, 0, 1)
    ]
    assert torch.equal(few[0], few[1])
    assert not torch.equal(few[0], few[2])
    assert (few[0].diff(dim=0) > 0).all()
