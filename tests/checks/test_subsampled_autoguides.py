"""Pyro's automatic guides of models that draw mini-batches themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import LogNormal, Normal
from pyro.infer import SVI, Trace_ELBO, autoguide
from torch import Tensor

from ppl_lvm import fit
from ppl_lvm.checks import check

X = torch.randn(12, generator=torch.Generator().manual_seed(0))
GUIDES = [
    *(autoguide.AutoDelta, autoguide.AutoNormal, autoguide.AutoDiagonalNormal),
    *(autoguide.AutoMultivariateNormal, autoguide.AutoLowRankMultivariateNormal),
    *(autoguide.AutoLaplaceApproximation, autoguide.AutoIAFNormal, autoguide.AutoGaussian),
]


def _by_index(x: Tensor) -> None:
    m = pyro.sample("m", Normal(0.0, 10.0))
    s = pyro.sample("s", LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=4, dim=-1) as index:
        pyro.sample("x", Normal(m, s), obs=x[index])


def _by_function(x: Tensor) -> None:
    m = pyro.sample("m", Normal(0.0, 10.0))
    with pyro.plate("data", len(x), subsample_size=4, dim=-1):
        batch = pyro.subsample(x, event_dim=0)
        z = pyro.sample("z", Normal(m, 1.0))
        pyro.sample("x", Normal(z, 1.0), obs=batch)


def _plates(x: Tensor) -> Any:
    return pyro.plate("data", len(x), subsample_size=4, dim=-1)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.__name__)
@pytest.mark.parametrize("model", [_by_index, _by_function])
def test_check_passes_an_autoguide_of_a_subsampled_model(
    model: Callable[[Tensor], None], guide: Any
) -> None:
    options: dict[str, Any] = {}
    if model is _by_function and guide in (autoguide.AutoDelta, autoguide.AutoNormal):
        options["create_plates"] = _plates
    built = guide(model, **options)
    issues = check(model, built, X)
    assert [str(issue) for issue in issues if issue.severity != "note"] == []
    assert any(each.name == "TraceMeanField_ELBO" for each in issues.estimators)
    optimizer = pyro.optim.Adam({"lr": 0.01})  # type: ignore[attr-defined]
    assert SVI(model, built, optimizer, Trace_ELBO()).step(X) < float("inf")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*not computed")
@pytest.mark.parametrize("model", [_by_index, _by_function])
def test_samples_and_exports_of_a_subsampled_model_name_the_plate(
    model: Callable[[Tensor], None], tmp_path: Path
) -> None:
    guide = autoguide.AutoNormal(model, create_plates=_plates) if model is _by_function else None
    directory = None if guide else tmp_path / "run"  # figures of it are no error
    run = fit(model, guide, X, num_steps=1, directory=directory, progress=False)
    for name, call in (
        ("sample", lambda: run.sample(len(X), X)),
        ("to_arviz", lambda: run.to_arviz(X, num_samples=3)),
    ):
        with pytest.raises(ValueError, match=f"{name}: the plate 'data' draws 4 of the .* rows"):
            call()
