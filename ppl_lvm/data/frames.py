"""Rows of data frames.

pandas frames are read as they are. Others become pandas frames: what offers Arrow's C interface
(polars, pyarrow, DuckDB), arrays and data sets of xarray, AnnData. A library is imported only if
the object comes from it.

A categorical column becomes its codes 0 … C - 1, with the labels in `ReaderResult.categories`. A
table of categorical columns alone has integers; beside numbers, codes are numbers too.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppl_lvm.data.stores import ReaderResult, memory_store
from ppl_lvm.data.validation import Columns, SourceLocation, check_names, pick_columns

if TYPE_CHECKING:
    import pandas as pd


def as_frame(source: Any, columns: Columns, labels: str | int | None) -> "pd.DataFrame | None":
    """A table as a pandas frame; None for an object that is no table.

    Raises:
        ValueError: an object of xarray that has no table's shape.
    """
    if _comes_from(source, "pandas", "DataFrame"):
        frame: pd.DataFrame = source
        return frame
    if _comes_from(source, "pandas", "Series"):
        named: pd.DataFrame = source.to_frame("values" if source.name is None else source.name)
        return named
    if _comes_from(source, "polars", "LazyFrame"):
        source = source.collect()
    if _comes_from(source, "polars", "Series"):
        source = source.to_frame(source.name or "values")
    if _comes_from(source, "anndata", "AnnData"):
        return _of_anndata(source, columns, labels)
    if _comes_from(source, "xarray", "DataArray") or _comes_from(source, "xarray", "Dataset"):
        return _of_xarray(source)
    if hasattr(source, "__arrow_c_stream__"):
        import pyarrow

        table: pd.DataFrame = pyarrow.table(source).to_pandas()
        return table
    return None


def _comes_from(source: Any, module: str, name: str) -> bool:
    """True for an instance of a class of a module, which is imported if there is one."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(source, kind)


def _of_anndata(source: Any, columns: Columns, labels: str | int | None) -> "pd.DataFrame":
    """X with the variables' names, and the columns of obs that `columns` and `labels` name."""
    frame: pd.DataFrame = source.to_df()
    asked = [name for name in (*(columns or ()), labels) if name in source.obs.columns]
    for name in dict.fromkeys(name for name in asked if name not in frame.columns):
        frame[name] = source.obs[name]
    return frame


def _of_xarray(source: Any) -> "pd.DataFrame | None":
    import pandas as pd

    if hasattr(source, "data_vars"):
        dims = {variable.dims for variable in source.data_vars.values()}
        if len(dims) != 1 or len(next(iter(dims))) != 1:
            raise ValueError(
                f"the Dataset has the dimensions {dict(source.sizes)}. Pass one of its variables, "
                "dataset['x'], or a data set whose variables have one dimension, the same."
            )
        return pd.DataFrame({str(name): v.values for name, v in source.data_vars.items()})
    if source.ndim != 2 or source.dims[1] not in source.coords:
        return None
    return pd.DataFrame(source.values, columns=[str(c) for c in source[source.dims[1]].values])


def join_frames(frames: "Sequence[pd.DataFrame]") -> "pd.DataFrame":
    """Frames of equal columns one below the other, with the union of their categories."""
    import pandas as pd

    for name in frames[0].columns:
        parts = [frame[name] for frame in frames]
        if all(isinstance(part.dtype, pd.CategoricalDtype) for part in parts):
            from pandas.api.types import union_categoricals

            dtype = union_categoricals(parts, ignore_order=True).dtype
            for frame in frames:
                frame[name] = frame[name].astype(dtype)
    return pd.concat(frames, ignore_index=True)


def read_frame(
    frame: "pd.DataFrame",
    source: str,
    columns: Columns = None,
    labels: str | int | None = None,
    missing: str = "error",
) -> ReaderResult:
    """Rows of a pandas DataFrame; columns are chosen by name."""
    import pandas as pd

    names = [str(name) for name in frame.columns]
    if len(frame) == 0:
        raise ValueError(f"{source} has no rows. Check the program that made it.")
    check_names(names, source)
    chosen, label = pick_columns(names, len(names), columns, labels, source)
    picked = tuple(names[k] for k in chosen)
    location = SourceLocation(source, picked)
    table = frame.iloc[:, chosen].copy()
    table.columns = pd.Index(picked)
    categories: dict[str, list[str]] = {}
    for k, name in zip(chosen, picked, strict=True):
        column = frame.iloc[:, k]
        if isinstance(column.dtype, pd.CategoricalDtype):
            categories[name] = [str(value) for value in column.cat.categories]
            table[name] = column.cat.codes.astype(np.float64).replace(-1.0, np.nan)
        else:
            _check_column(column, f"{source}, column {name!r}")
    values = table.to_numpy(dtype=np.float64, na_value=np.nan)
    whole = len(categories) == len(picked) and not np.isnan(values).any()
    rows = torch.from_numpy(values.astype(np.int64)) if whole else values
    return ReaderResult(
        memory_store([rows], location, missing),
        list(picked),
        None if label is None else frame.iloc[:, label].to_numpy(),
        categories=categories or None,
    )


def _check_column(column: "pd.Series[float]", where: str) -> None:
    """Reject a column that is not numeric; the message shows its first text."""
    if column.dtype.kind in "biuf":  # pandas' own nullable types have a kind too
        return
    texts = ((k, value) for k, value in enumerate(column) if isinstance(value, str))
    k, value = next(texts, (None, None))
    at = "" if k is None else f", row {k + 1} (index {k}): {value!r}"
    raise ValueError(
        f"{where}{at} is not a number; the column's type is {column.dtype}. Convert it, omit it "
        "with columns=, name it in labels= if it is the class, "
        "or make it categorical: frame.astype({...: 'category'})."
    )
