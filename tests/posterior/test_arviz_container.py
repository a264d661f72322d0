"""ArviZ container in ArviZ 0.23 and 1.x.

These tests do not import torch. Set PPL_LVM_ARVIZ1_PYTHON to a Python with ArviZ 1.x, or have it on
the PATH as python3.12 or newer; it needs arviz, h5netcdf and pytest.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppl_lvm.posterior.arviz_container import load, loo, save, summary, to_inference_data

az = pytest.importorskip("arviz", reason="ArviZ is not installed", exc_type=ImportError)

AZ1 = int(az.__version__.split(".")[0]) >= 1
S, N, P = 60, 7, 3


def _arrays() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {
        "posterior": {"mu": draw.normal(size=(S, P)), "sigma": draw.gamma(2, size=S)},
        "log_likelihood": {"x": draw.normal(size=(S, N))},
        "posterior_predictive": {"x": draw.normal(size=(S, N, P))},
        "prior": {"mu": draw.normal(size=(9, P))},
        "prior_predictive": {"x": draw.normal(size=(9, N, P))},
        "observed_data": {"x": draw.normal(size=(N, P))},
        "log_p": draw.normal(size=S),
        "log_q": draw.normal(size=S),
    }


def _data(**changes: Any) -> Any:
    return to_inference_data(
        **{
            **_arrays(),
            "dims": {"x": ["data", "feature"], "mu": ["feature"]},
            "coords": {"feature": ["a", "b", "c"]},
            "attrs": {"seed": 3, "model": "m.py:M", "settings": {"K": 5}, "done": True},
            **changes,
        }
    )


GROUPS = [
    "posterior",
    "log_likelihood",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "observed_data",
]


def _check(data: Any) -> None:
    arrays = _arrays()
    for group in GROUPS:
        for name, values in arrays[group].items():
            stored = data[group][name]
            expected = values if group == "observed_data" else values[None]
            assert np.array_equal(stored.values, expected)
    assert data["posterior"]["mu"].dims == ("chain", "draw", "feature")
    assert list(data["posterior"]["feature"].values) == ["a", "b", "c"]
    assert data["log_likelihood"]["x"].dims == ("chain", "draw", "data")
    assert data["observed_data"]["x"].dims == ("data", "feature")
    assert np.array_equal(data["sample_stats"]["log_p"].values[0], arrays["log_p"])
    assert np.array_equal(data["sample_stats"]["log_q"].values[0], arrays["log_q"])
    assert data.attrs["seed"] == 3
    assert data.attrs["settings"] == '{"K": 5}'


def test_container_has_groups_dimensions_and_coordinates() -> None:
    data = _data()
    _check(data)
    assert ("DataTree" if AZ1 else "InferenceData") in type(data).__name__


def test_container_survives_netcdf(tmp_path: Path) -> None:
    path = tmp_path / "draws.nc"
    save(_data(), path)
    data = load(path)
    _check(data)
    _check(az.from_netcdf(path))
    save(data, path)  # no reader holds the file
    assert [entry.name for entry in tmp_path.iterdir()] == ["draws.nc"]


def test_types_survive_netcdf(tmp_path: Path) -> None:
    z = np.arange(S) % 3
    data = to_inference_data({"z": z, "on": z == 1, "f": z.astype(np.float32)})
    save(data, tmp_path / "d.nc")
    stored = load(tmp_path / "d.nc")["posterior"]
    assert stored["z"].dtype == z.dtype
    assert stored["on"].dtype == bool
    assert stored["f"].dtype == np.float32


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "draws.nc"
    save(_data(), path)
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        save(to_inference_data({"z": np.array([object()] * 3)}), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_load_rejects_missing_and_incomplete_files_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.nc"):
        load(tmp_path / "no.nc")
    save(_data(), tmp_path / "complete.nc")
    (tmp_path / "cut.nc").write_bytes((tmp_path / "complete.nc").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cut\.nc is not a complete"):
        load(tmp_path / "cut.nc")


def test_summary_has_the_rows_of_arviz_and_exact_values() -> None:
    data, arrays = _data(), _arrays()
    table = summary(data, prob=0.8)
    assert list(table.columns) == ["mean", "sd", "lower", "upper"]
    theirs = az.summary(data, kind="stats", round_to="none" if AZ1 else None)
    assert list(table.index) == list(theirs.index)
    assert np.allclose(table["mean"], theirs["mean"].astype(float), atol=1e-3)
    mu = arrays["posterior"]["mu"]
    assert table.loc["mu[b]", "sd"] == pytest.approx(mu[:, 1].std(ddof=1))
    assert table.loc["mu[c]", "lower"] == pytest.approx(np.quantile(mu[:, 2], 0.1))
    assert table.loc["mu[c]", "upper"] == pytest.approx(np.quantile(mu[:, 2], 0.9))
    assert len(summary(data, group="prior")) == P
    with pytest.raises(ValueError, match="between 0 and 1"):
        summary(data, prob=94)


# Leave-one-out: its values are tested in test_psis.py.


def _conjugate() -> tuple[Any, float]:
    """x_i ~ N(θ, 1), θ ~ N(0, 10²), draws from a q that is not the posterior; the exact elpd."""
    draw = np.random.default_rng(2)
    x = draw.normal(1.0, 1.0, size=30)

    def log_normal(x: Any, mean: Any, variance: float) -> Any:
        return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))

    variance = 1 / (30 + 1 / 100)
    mean, q_variance = variance * x.sum() + 0.1, 1.5 * variance
    theta = draw.normal(mean, q_variance**0.5, size=4000)
    l = log_normal(x, theta[:, None], 1.0)
    data = to_inference_data(
        {"theta": theta},
        log_likelihood={"x": l},
        posterior_predictive={"x": theta[:, None] + draw.normal(size=l.shape)},
        observed_data={"x": x},
        log_p=l.sum(axis=1) + log_normal(theta, 0.0, 100.0),
        log_q=log_normal(theta, mean, q_variance),
    )
    variance_without = 1 / (29 + 1 / 100)
    return data, float(log_normal(x, variance_without * (x.sum() - x), 1 + variance_without).sum())


def test_loo_corrects_for_q_unlike_az_loo() -> None:
    data, exact = _conjugate()
    result = loo(data)
    assert result.elpd == pytest.approx(exact, abs=0.05)
    plain = az.loo(data)
    uncorrected = plain.elpd if AZ1 else plain.elpd_loo
    assert abs(uncorrected - exact) > 0.2
    if AZ1:
        stats = data["sample_stats"]
        theirs = az.loo_approximate_posterior(data, stats["log_p"].values, stats["log_q"].values)
        assert result.elpd == pytest.approx(theirs.elpd, abs=0.01)


def test_loo_of_posterior_draws_equals_az_loo() -> None:
    data, _ = _conjugate()
    bare = to_inference_data(
        {"theta": data["posterior"]["theta"].values[0]},
        log_likelihood={"x": data["log_likelihood"]["x"].values[0]},
    )
    plain = az.loo(bare)
    assert loo(bare).elpd == pytest.approx(plain.elpd if AZ1 else plain.elpd_loo, abs=0.01)


def test_loo_rejects_missing_and_ambiguous_likelihoods() -> None:
    with pytest.raises(ValueError, match="no log_likelihood"):
        loo(to_inference_data({"mu": np.zeros(S)}))
    l = np.random.default_rng(0).normal(size=(S, N))
    data = to_inference_data({"mu": np.zeros(S)}, log_likelihood={"x": l, "y": l})
    with pytest.raises(ValueError, match="likelihoods of x, y"):
        loo(data)
    with pytest.raises(ValueError, match="no log-likelihood of 'z'"):
        loo(data, "z")
    assert loo(data, "y").elpd == loo(data, "x").elpd


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # 0.23's own
def test_arviz_plots_predictive_checks() -> None:
    data, _ = _conjugate()
    if AZ1:
        az.plot_ppc_dist(data, num_samples=5, backend="none")
    else:
        import matplotlib.pyplot as plt

        az.plot_ppc(data, num_pp_samples=5, random_seed=0)
        plt.close("all")


# Invalid input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_p": np.zeros(S - 1)}, "'log_q' has 60 draws and another variable 59"),
        ({"log_p": np.zeros(9), "log_q": None}, "sample_stats has 9 draws and posterior has 60"),
        ({"prior_predictive": {"x": np.zeros((8, N, P))}}, "prior_predictive has 8 draws"),
        ({"posterior": {"mu": np.zeros((S, P + 1))}}, "4 along 'feature', and coords name 3"),
        ({"posterior": {"mu": 3.0}}, "draws come first"),
        ({"prior": {"a/b": np.zeros(9), "a.b": np.zeros(9)}}, "two variables called 'a.b'"),
        ({"posterior": {"mu": np.zeros((S, 3)), "x": np.zeros((S, 2, 4))}}, "4 along 'feature'"),
        (
            {
                "posterior": {"u": np.zeros((S, 2)), "v": np.zeros((S, 4))},
                "dims": {"u": "k", "v": "k"},
            },
            "4 along 'k', other variables 2",
        ),
    ],
)
def test_container_rejects_inconsistent_arrays(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        _data(**changes)
    assert message in str(caught.value)


def test_names_of_nested_programs_are_valid_in_netcdf(tmp_path: Path) -> None:
    data = to_inference_data({"layer/w": np.zeros((S, 2))}, dims={"layer/w": ["unit"]})
    save(data, tmp_path / "d.nc")
    assert load(tmp_path / "d.nc")["posterior"]["layer.w"].dims == ("chain", "draw", "unit")


# The other version


def _other_python() -> str | None:
    """A Python with ArviZ 1.x and what these tests need."""
    names = [os.environ.get("PPL_LVM_ARVIZ1_PYTHON", "")]
    names += [shutil.which(f"python3.{minor}") or "" for minor in range(12, 16)]
    check = "import arviz, h5netcdf, pytest; assert int(arviz.__version__.split('.')[0]) >= 1"
    for name in filter(None, names):
        tried = subprocess.run([name, "-c", check], capture_output=True, check=False)
        if tried.returncode == 0:
            return name
    return None


@pytest.mark.slow
@pytest.mark.skipif(AZ1, reason="ArviZ 1.x is installed")
def test_container_in_arviz_1() -> None:
    python = _other_python()
    if python is None:
        pytest.skip("no Python with ArviZ 1.x, h5netcdf and pytest; see PPL_LVM_ARVIZ1_PYTHON")
    root = Path(__file__).parents[2]
    files = [str(Path(__file__)), str(Path(__file__).with_name("test_psis.py"))]
    options = ["--noconftest", "-q", "-p", "no:cacheprovider", "-p", "no:doctest"]
    done = subprocess.run(
        [python, "-m", "pytest", *options, "-o", "addopts=--import-mode=importlib", *files],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


def test_container_does_not_import_torch_arviz_or_xarray() -> None:
    heavy = {"torch", "arviz", "xarray", "pandas"}
    code = (
        "import sys; import ppl_lvm.posterior.arviz_container; "
        f"sys.exit(bool({heavy!r} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
