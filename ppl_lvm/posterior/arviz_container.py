"""ArviZ's container for draws, in ArviZ 0.23 and 1.x.

Only this file depends on ArviZ's version: 0.23 (Python 3.11) has an `InferenceData`, 1.x (Python
3.12 and newer) an `xarray.DataTree`. Both are built from the same xarray datasets, with one chain
of S draws, so that `az.summary`, `az.loo`, the plots and NetCDF files work alike. torch is not
imported; ArviZ, xarray and pandas are imported at the first use.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_lvm.posterior.psis import Loo
from ppl_lvm.posterior.psis import loo as psis_loo

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Arrays = Mapping[str, ArrayLike]
Names = Mapping[str, Sequence[str]]


def to_inference_data(
    posterior: Arrays,
    *,
    log_likelihood: Arrays | None = None,
    posterior_predictive: Arrays | None = None,
    prior: Arrays | None = None,
    prior_predictive: Arrays | None = None,
    observed_data: Arrays | None = None,
    log_p: ArrayLike | None = None,
    log_q: ArrayLike | None = None,
    sample_stats: Arrays | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Names | None = None,
    log_likelihood_dims: Names | None = None,
    attrs: Mapping[str, Any] | None = None,
    num_chains: int = 1,
) -> Any:
    """An `InferenceData` (ArviZ 0.23) or a `DataTree` (1.x) of draws.

    Args:
        posterior: variable -> array (S, ...), draws first; likewise `log_likelihood`,
            `posterior_predictive`, `prior` and `prior_predictive`. S is the same within a group,
            and in all but the prior's groups.
        observed_data: arrays without draws.
        log_p: (S,) log p(x, θ) of each draw, stored in `sample_stats`, where `loo` reads it.
        log_q: (S,) log q(θ) of each draw, likewise.
        sample_stats: further statistics of each draw, (S, ...), such as its weight.
        coords: values along a named dimension; default 0, 1, 2, ...
        dims: names of a variable's dimensions after the draws. A variable with fewer dimensions
            in one group (a log-likelihood with the event summed out) takes the first names.
        log_likelihood_dims: those in `log_likelihood` where they are others.
        num_chains: C of the draws S of all but the prior's groups, chain after chain.
        attrs: attributes of the container. Values that NetCDF does not support are stored as JSON.

    A "/" in a name, which would be a folder in the file, becomes ".".

    Raises:
        ValueError: numbers of draws that disagree, names that collide, or one dimension name for
            two sizes in one group.
    """
    stats = {name: l for name, l in (("log_p", log_p), ("log_q", log_q)) if l is not None}
    stats |= sample_stats or {}
    groups = {
        "posterior": posterior,
        "posterior_predictive": posterior_predictive,
        "log_likelihood": log_likelihood,
        "sample_stats": stats,
        "prior": prior,
        "prior_predictive": prior_predictive,
        "observed_data": observed_data,
    }
    coords = {_name(dim): values for dim, values in (coords or {}).items()}
    dims, terms = (
        {_name(key): [_name(dim) for dim in names] for key, names in (named or {}).items()}
        for named in (dims, log_likelihood_dims)
    )
    datasets: dict[str, xr.Dataset] = {}
    draws: dict[str, tuple[str, int]] = {}
    for group, arrays in groups.items():
        if not arrays:
            continue
        named = {**dims, **terms} if group == "log_likelihood" else dims
        family = "prior" if group.startswith("prior") else "posterior"
        C = num_chains if family == "posterior" else 1
        dataset = _dataset(group, arrays, coords, named, C)
        if "draw" in dataset.sizes:
            first, S = draws.setdefault(family, (group, dataset.sizes["draw"]))
            if dataset.sizes["draw"] != S:
                raise ValueError(
                    f"{group} has {dataset.sizes['draw']} draws and {first} has {S}. Draw s of "
                    "each must belong to draw s of the other."
                )
        datasets[group] = dataset
    return _container(datasets, {key: _attribute(value) for key, value in (attrs or {}).items()})


def loo(data: Any, name: str | None = None) -> Loo:
    """Leave-one-out accuracy from the container, corrected for draws from q.

    If the container has log_p and log_q, the ratios are those of the approximate posterior, which
    `az.loo` ignores. `name` is the variable in log_likelihood, if there are several.

    Raises:
        ValueError: there is no log-likelihood, or several and no name.
    """
    if "log_likelihood" not in _groups(data):
        raise ValueError("These data have no log_likelihood. Pass it to to_inference_data.")
    names = [str(key) for key in data["log_likelihood"].data_vars]
    if name is None and len(names) > 1:
        raise ValueError(f"There are log-likelihoods of {', '.join(names)}: choose one by name.")
    name = names[0] if name is None else name
    if name not in names:
        raise ValueError(f"There is no log-likelihood of {name!r}, only of {', '.join(names)}.")
    l = _flat(data["log_likelihood"][name])
    stats = data["sample_stats"] if "sample_stats" in _groups(data) else {}
    log_p, log_q = (_flat(stats[key]) if key in stats else None for key in ("log_p", "log_q"))
    return psis_loo(l, log_p, log_q)


def summary(data: Any, prob: float = 0.9, group: str = "posterior") -> "pd.DataFrame":
    """Mean, sd, and central interval of probability `prob` of each scalar in a group.

    One row per scalar, with the name that `az.summary` gives it (`mu[0, 1]`) and columns `mean`,
    `sd`, `lower`, `upper` in every version. Effective sample size and R-hat are for Markov chains
    and have no meaning for independent draws, so they are left out.

    Raises:
        ValueError: `prob` is outside of (0, 1).
    """
    import pandas as pd

    if not 0 < prob < 1:
        raise ValueError(f"prob={prob} must lie between 0 and 1.")
    index, values = [], []
    for name, variable in data[group].data_vars.items():
        inner = [dim for dim in variable.dims if dim not in ("chain", "draw")]
        labels = [variable[dim].values for dim in inner]
        flat = _flat(variable)
        for at in np.ndindex(*flat.shape[1:]):
            position = ", ".join(str(label[k]) for label, k in zip(labels, at, strict=True))
            index.append(f"{name}[{position}]" if position else str(name))
            values.append(flat[(slice(None), *at)])
    draws = np.stack(values, axis=1).astype(np.float64)  # (S, rows)
    lower, upper = np.quantile(draws, [(1 - prob) / 2, (1 + prob) / 2], axis=0)
    sd = draws.std(axis=0, ddof=1) if len(draws) > 1 else np.full(draws.shape[1], np.nan)
    return pd.DataFrame(
        {"mean": draws.mean(axis=0), "sd": sd, "lower": lower, "upper": upper}, index=index
    )


def save(data: Any, path: str | Path) -> None:
    """Write NetCDF that both versions read; the file is replaced atomically."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(suffix=".nc", dir=path.parent)
    os.close(handle)
    try:
        data.to_netcdf(temporary, engine="h5netcdf")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path: str | Path) -> Any:
    """Read a file that `save` wrote, in either version, into memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a complete NetCDF file.
    """
    import xarray as xr

    if not Path(path).exists():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        # xarray rather than ArviZ, which would keep the file open.
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            groups = {key: child.to_dataset().load() for key, child in tree.children.items()}
            return _container(groups, {str(key): tree.attrs[key] for key in tree.attrs})
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is not a complete NetCDF file ({error}). Write it again.") from (
            error
        )


def _container(groups: "dict[str, xr.Dataset]", attrs: dict[str, Any]) -> Any:
    """The container of the installed ArviZ version."""
    import xarray as xr

    az = _arviz()
    if int(version("arviz").split(".")[0]) >= 1:
        tree = xr.DataTree.from_dict(dict(groups))
        tree.attrs = attrs
        return tree
    return az.InferenceData(attrs=attrs, **groups)


def _arviz() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0 at import
            import arviz
    except ImportError as error:
        raise ImportError(
            f"ArviZ cannot be imported ({error}). Install it: pip install arviz h5netcdf"
        ) from error
    return arviz


def _groups(data: Any) -> list[str]:
    """Names of the groups in either container."""
    return list(data.children) if hasattr(data, "children") else list(data.groups())


def _dataset(
    group: str,
    arrays: Arrays,
    coords: Mapping[str, Sequence[Any]],
    dims: Names,
    num_chains: int,
) -> "xr.Dataset":
    """One group: draws become chains, every dimension gets a name and values along it."""
    import xarray as xr

    has_draws = group != "observed_data"
    variables: dict[str, xr.Variable] = {}
    along: dict[str, Any] = {}
    for key, array in arrays.items():
        name, values = _name(key), np.asarray(array)
        if name in variables:
            raise ValueError(f"{group} has two variables called {name!r}; rename one.")
        if has_draws and values.ndim == 0:
            raise ValueError(f"{group}, {key!r} is a single value; its draws come first, (S,).")
        outer = ["chain", "draw"] if has_draws else []
        if has_draws:
            values = values.reshape(num_chains, -1, *values.shape[1:])
        inner = _dimensions(name, values.ndim - len(outer), dims)
        for dim, size in zip([*outer, *inner], values.shape, strict=True):
            label = np.asarray(coords[dim]) if dim in coords else np.arange(size)
            if len(label) != size:
                raise ValueError(
                    f"{group}, {key!r} has {size} along {dim!r}, and coords name {len(label)}."
                )
            if len(along.setdefault(dim, label)) != size and dim == "draw":
                raise ValueError(
                    f"{group}, {key!r} has {size} draws and another variable {len(along[dim])}. "
                    "Draw s of each must belong to draw s of the other."
                )
            if len(along[dim]) != size:
                raise ValueError(
                    f"{group}, {key!r} has {size} along {dim!r}, other variables "
                    f"{len(along[dim])}. Pass another name in dims=, or equal sizes."
                )
        variables[name] = xr.Variable([*outer, *inner], values)
    return xr.Dataset(variables, coords=along)


def _dimensions(name: str, count: int, dims: Names) -> list[str]:
    """The first `count` names in `dims`, and ArviZ's default names for further dimensions."""
    names = list(dims.get(name, ()))[:count]
    return names + [f"{name}_dim_{k}" for k in range(len(names), count)]


def _flat(variable: Any) -> NDArray[Any]:
    """Values (S, ...) of a variable with (chain, draw, ...), chains one after the other."""
    values = variable.transpose("chain", "draw", ...).values
    merged: NDArray[Any] = values.reshape(-1, *values.shape[2:])
    return merged


def _name(key: str) -> str:
    return key.replace("/", ".")


def _attribute(value: Any) -> Any:
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return value if plain else json.dumps(value, default=str)
