"""Data frames and other tables keep names and categories."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import xarray as xr
from scipy import sparse

import ppl_lvm as lvm
from ppl_lvm import load_data
from ppl_lvm.models import PPCA

FRAME = pd.DataFrame({"a": [1.0, 2.5, 3.0, 0.5], "b": [4, 5, 6, 9], "kind": ["u", "v", "u", "v"]})
ROWS = torch.tensor([[1.0, 4.0], [2.5, 5.0], [3.0, 6.0], [0.5, 9.0]])


def _polars() -> Any:
    return pytest.importorskip("polars").from_pandas(FRAME)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FRAME,
        lambda: pa.Table.from_pandas(FRAME),
        lambda: pa.RecordBatch.from_pandas(FRAME),
        _polars,
        lambda: _polars().lazy(),
    ],
    ids=["pandas", "arrow", "batch", "polars", "lazy"],
)
def test_frame_keeps_names_and_labels(make: Any) -> None:
    data = load_data(make(), labels="kind")
    assert torch.equal(data.tensors[0], ROWS)
    assert data.columns == ["a", "b"]
    assert data.label_names == ["u", "v"]
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match=r"column 'kind', row 1 .*'u' is not a number"):
        load_data(make())


def test_missing_value_of_an_arrow_table_is_located() -> None:
    table = pa.table({"a": [1, None], "b": [1, 2]})
    with pytest.raises(ValueError, match=r"the Table, row 2 .*column 'a'.*missing"):
        load_data(table)
    assert load_data(table, missing="keep").tensors[0].isnan().tolist() == [[0, 0], [1, 0]]


def test_categorical_columns_are_codes_with_labels() -> None:
    frame = FRAME.astype({"kind": "category"})
    mixed = load_data(frame)
    assert mixed.categories == {"kind": ["u", "v"]}
    assert mixed.tensors[0][:, 2].tolist() == [0, 1, 0, 1]
    alone = load_data(frame[["kind"]])
    assert alone.tensors[0].dtype == torch.int64
    frame.loc[1, "kind"] = None
    with pytest.raises(ValueError, match=r"column 'kind'.*missing"):
        load_data(frame)
    assert load_data(frame, missing="keep").tensors[0][1, 2].isnan()


def test_arrays_of_xarray_keep_the_names_of_their_coordinates() -> None:
    array = xr.DataArray(ROWS.numpy(), dims=("row", "gene"), coords={"gene": ["a", "b"]})
    assert load_data(array).columns == ["a", "b"]
    assert load_data(array.rename(gene="g").drop_vars("g")).columns is None
    cube = xr.DataArray(np.zeros((3, 2, 2)), dims=("row", "y", "x"))
    assert load_data(cube).tensors[0].shape == (3, 2, 2)
    table = xr.Dataset({"a": ("row", [1.0, 2.0]), "b": ("row", [3.0, 4.0])})
    assert load_data(table).columns == ["a", "b"]
    with pytest.raises(ValueError, match=r"the Dataset has the dimensions .*'row': 2"):
        load_data(table.assign(c=(("row", "k"), np.zeros((2, 3)))))


def test_tuple_of_frames_and_sparse_counts() -> None:
    counts = sparse.csr_array(np.eye(4))
    data = load_data((counts, FRAME[["a"]], FRAME["kind"]), labels=2)
    assert [tuple(t.shape) for t in data.tensors] == [(4, 4), (4, 1)]
    assert data.label_names == ["u", "v"]
    assert load_data((counts, FRAME["a"])).tensors[1].shape == (4,)
    with pytest.raises(ValueError, match=r"element 1 of the tuple.*'u' is not a number"):
        load_data((counts, FRAME[["kind"]]))


def test_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    frame = FRAME.astype({"kind": "category"})
    for n, part in enumerate((frame[:1], frame[1:])):
        part.assign(kind=part["kind"].cat.remove_unused_categories()).to_parquet(
            tmp_path / f"part-{n}.parquet", index=False
        )
    data = load_data(tmp_path)
    assert data.tensors[0].tolist() == [[1, 4, 0], [2.5, 5, 1], [3, 6, 0], [0.5, 9, 1]]
    assert data.categories == {"kind": ["u", "v"]}
    assert torch.equal(load_data(str(tmp_path), labels="kind").tensors[0], ROWS)
    FRAME[["a"]].to_parquet(tmp_path / "part-2.parquet", index=False)
    with pytest.raises(ValueError, match=r"part-2.parquet has the columns \['a'\]"):
        load_data(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is a folder without \.parquet files"):
        load_data(tmp_path / "empty")


class _AnnData(SimpleNamespace):
    def to_df(self) -> pd.DataFrame:
        return FRAME[["a", "b"]].copy()


def test_annotated_data_take_labels_and_covariates_from_obs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against a stand-in where anndata is not installed."""
    obs = FRAME[["kind"]].astype("category").assign(age=[3.0, 4.0, 5.0, 6.0])
    try:
        import anndata

        source: Any = anndata.AnnData(FRAME[["a", "b"]].set_index(pd.Index(list("wxyz"))))
        source.obs = obs.set_index(source.obs.index)
    except ImportError:
        monkeypatch.setitem(__import__("sys").modules, "anndata", SimpleNamespace(AnnData=_AnnData))
        source = _AnnData(obs=obs)
    data = load_data(source, labels="kind")
    assert torch.equal(data.tensors[0], ROWS)
    assert (data.columns, data.label_names) == (["a", "b"], ["u", "v"])
    chosen = load_data(source, columns=["b", "age", "kind"])
    assert chosen.tensors[0].tolist()[1] == [5.0, 4.0, 1.0]
    assert chosen.categories == {"kind": ["u", "v"]}


def test_names_of_columns_are_coordinates_in_arviz(tmp_path: Path) -> None:
    run = lvm.fit_em(PPCA(1), FRAME[["a", "b"]], max_iterations=2, directory=tmp_path / "run")
    for each in (run, lvm.load_run(tmp_path / "run")):
        exported = each.to_arviz(FRAME[["a", "b"]], num_samples=3)
        observed = exported["observed_data"]["x"]
        assert list(observed.coords["x_dim_0"].values) == ["a", "b"]
        assert list(exported["posterior_predictive"]["x"].coords["x_dim_0"].values) == ["a", "b"]
