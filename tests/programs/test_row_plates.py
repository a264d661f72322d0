"""Recognition of the plates over rows."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from ppl_lvm.programs.row_plates import RowPlates, known_row_plates, row_plates

X = torch.arange(12.0).reshape(4, 3)


def names(*programs: Callable[..., Any], batch: tuple[Any, ...] = (X,)) -> set[str]:
    return set(row_plates(*programs, batch=batch).names)


def factor_model(plate: str, dim: int = -1) -> Callable[[Tensor], None]:
    """Columns in a plate at the other dimension, with loadings in the plate over columns."""

    def model(x: Tensor) -> None:
        columns = pyro.plate("columns", x.shape[1], dim=-3 - dim)
        rows = pyro.plate(plate, len(x), dim=dim)
        with columns:
            w = pyro.sample("w", Normal(0.0, 1.0))
        with rows:
            z = pyro.sample("z", Normal(0.0, 1.0))
        with rows, columns:
            pyro.sample("x", Normal(w * z, 1.0), obs=x if dim == -2 else x.T)

    return model


@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("plate", ["data", "cells", "sample"])
@pytest.mark.parametrize("shape", [(4, 3), (4, 4), (1, 1), (1, 3), (2, 2)])
def test_row_plate_has_any_name_and_dim_beside_a_plate_of_equal_size(
    plate: str, dim: int, shape: tuple[int, int]
) -> None:
    assert names(factor_model(plate, dim), batch=(torch.randn(shape),)) == {plate}


def test_row_plate_is_found_where_columns_are_called_data() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[1], dim=-1):
            w = pyro.sample("w", Normal(0.0, 1.0))
        with pyro.plate("cells", len(x), dim=-1):
            pyro.sample("x", Normal(w, 1.0).to_event(1), obs=x)

    assert names(model, batch=(torch.randn(4, 4),)) == {"cells"}


def test_row_plates_of_latents_and_of_observations_are_both_found() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("latents", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
        with pyro.plate("observations", len(x), dim=-1):
            pyro.sample("x", Normal(z, 1.0), obs=x[:, 0])

    assert names(model) == {"latents", "observations"}


def test_row_plate_of_a_guide_may_have_another_name() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("batch", len(x), dim=-1):
            pyro.sample("z", Normal(0.0, 1.0))

    assert names(factor_model("cells"), guide) == {"cells", "batch"}


def test_row_plate_of_a_guide_of_fixed_size_is_judged_in_the_model() -> None:
    model, x = factor_model("cells"), torch.randn(4, 4)
    guide = AutoNormal(model)
    guide(x)
    assert names(model, guide, batch=(x,)) == {"cells"}


@pytest.mark.parametrize("subsample", [{"subsample_size": 2}, {"subsample": torch.tensor([0, 2])}])
@pytest.mark.parametrize("fixed", [True, False])
def test_row_plate_may_subsample_the_rows(subsample: dict[str, Any], fixed: bool) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("columns", x.shape[1], dim=-1):
            pyro.sample("w", Normal(0.0, 1.0))
        with pyro.plate("cells", 4 if fixed else len(x), **subsample, dim=-1) as index:
            pyro.sample("x", Normal(0.0, 1.0).expand([2]), obs=x[index, 0])

    assert names(model, batch=(torch.randn(4, 4),)) == {"cells"}


def test_row_plate_may_stand_for_more_rows() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("cells", 5000, subsample_size=len(x), dim=-1):
            pyro.sample("x", Normal(0.0, 1.0), obs=x[:, 0])

    assert names(model) == {"cells"}


def test_row_plate_without_a_size_has_the_rows_of_its_values() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("cells", dim=-1):
            pyro.sample("x", Normal(torch.zeros(len(x)), 1.0), obs=x[:, 0])

    assert names(model) == {"cells"}


def test_row_plate_of_fixed_size_is_told_from_columns_by_its_observations() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("cells", 4, dim=-2), pyro.plate("columns", 4, dim=-1):
            pyro.sample("x", Normal(0.0, 1.0), obs=x)

    with pyro.validation_enabled(False):
        assert names(model, batch=(torch.randn(4, 4),)) == {"cells"}


def test_columns_as_many_as_rows_are_no_row_plate() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("columns", x.shape[1], dim=-1):
            pyro.sample("x", Normal(torch.zeros(len(x)), 1.0).to_event(1), obs=x.T)

    assert names(model, batch=(torch.randn(4, 4),)) == set()
    assert names(model, batch=(torch.randn(5, 4),)) == set()


def test_plates_of_all_pairs_of_rows_are_undecided() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("i", len(x), dim=-2), pyro.plate("j", len(x), dim=-1):
            distance = torch.cdist(x, x)
            pyro.sample("d", Normal(0.0, 1.0), obs=distance)

    assert row_plates(model, batch=(X,)) == RowPlates(frozenset(), frozenset({"i", "j"}))


def test_known_row_plates_run_nothing() -> None:
    plates = RowPlates(frozenset({"cells"}))

    def fails(x: Tensor) -> None:
        raise AssertionError

    with known_row_plates(plates):
        assert row_plates(fails, batch=(X,)) is plates


def test_finding_row_plates_leaves_random_state_and_parameters() -> None:
    def model(x: Tensor) -> None:
        pyro.param("a", torch.zeros(len(x)))
        with pyro.plate("cells", len(x), dim=-1):
            pyro.sample("z", Normal(0.0, 1.0))

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert names(model) == {"cells"}
    assert torch.equal(torch.rand(3), expected)
    assert "a" not in pyro.get_param_store()
