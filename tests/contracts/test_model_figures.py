"""Every bundled model has its figures and exports to ArviZ."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_lvm.data import load_data
from ppl_lvm.diagnostics.diagnosis import Diagnosis
from ppl_lvm.fitting.svi import fit
from ppl_lvm.report.report import report
from ppl_lvm.report.run_figures import RUN_FIGURES, figures
from ppl_lvm.report.run_view import RunView
from ppl_lvm.runs.run import Run

models: Any = importlib.import_module("ppl_lvm.models")

DIGITS = load_data("digits(binarize=8)").subset(torch.arange(40))
X, TRUTH = DIGITS.tensors[0], DIGITS.labels
assert TRUTH is not None
SOME = torch.where(torch.arange(40) < 20, TRUTH, -1)
NET = {"latent": 2, "hidden": (4,)}
CODES = {"samples", "reconstructions", "traversals", "latent_plane"}
# Model -> data (None: its example batch), settings, required figures. A model without an entry
# is tested on its example batch with default settings.
CASES: dict[str, tuple[Any, dict[str, Any], set[str]]] = {
    "PPCA": (None, {}, CODES),
    "FactorAnalysis": (None, {}, CODES),
    "FactorModel": (None, {}, CODES),
    "VAE": (DIGITS, NET, CODES),
    "BernoulliVAE": (DIGITS, NET, CODES),
    "HierarchicalVAE": (DIGITS, {"latent": (3, 2), "hidden": (4,)}, CODES),
    "GaussianMixtureVAE": (DIGITS, {**NET, "components": 3}, CODES | {"classes", "confusion"}),
    "SemiSupervisedVAE": ((X, SOME), NET, CODES | {"classes", "confusion"}),
    "ConditionalVAE": (DIGITS, {**NET, "given": 32}, {"filled_in"}),
    "GaussianMixture": ("iris", {}, {"mixture", "confusion", "samples"}),
    "BayesianGaussianMixture": ("iris", {"components": 3}, {"mixture", "confusion", "posterior"}),
    "MixtureOfPPCA": ("iris", {}, {"mixture", "confusion"}),
    "Gaussian": (None, {}, {"density", "samples"}),
    "NormalizingFlow": ("moons", {"hidden": (4,), "layers": 2}, {"density", "samples"}),
    "Diffusion": ("moons", {"steps": 3, "hidden": (4,)}, {"chain", "samples"}),
    "HierarchicalRegression": (None, {}, {"predictions", "posterior"}),
    "RandomEffects": (None, {}, {"predictions", "posterior"}),
    "LatentDirichletAllocation": (None, {"topics": 3}, CODES | {"topics"}),
    "ProdLDA": (None, {"topics": 3}, CODES | {"topics"}),
    "HiddenMarkovModel": (None, {"states": 2}, {"sequences", "states"}),
    "LinearStateSpace": (None, {}, {"sequences"}),
    "DeepMarkovModel": (None, {**NET, "width": 4}, {"sequences"}),
}


@contextmanager
def elsewhere() -> Iterator[None]:
    """A tensor is not an array, as on a GPU, unless `cpu()` fetched it."""
    fetched: dict[int, Tensor] = {}
    numpy: Any = Tensor.numpy

    def cpu(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        return fetched.setdefault(copy.untyped_storage().data_ptr(), copy)

    def array(tensor: Tensor, *how: Any, **other: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in fetched:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return numpy(tensor, *how, **other)

    with patch.object(Tensor, "cpu", cpu), patch.object(Tensor, "numpy", array):
        yield


def test_unfetched_tensor_is_not_an_array() -> None:
    with elsewhere():
        with pytest.raises(TypeError, match="cuda:0"):
            np.asarray(torch.zeros(2))
        assert np.asarray(torch.zeros(2).cpu()[1:]).shape == (1,)


def test_cases_name_models_and_figures_that_exist() -> None:
    assert CASES.keys() <= set(models.__all__)
    assert set().union(*(kinds for _, _, kinds in CASES.values())) <= RUN_FIGURES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(models.__all__))
def test_model_has_figures_and_exports_to_arviz(model: str) -> None:
    source, settings, kinds = CASES.get(model, (None, {}, set()))
    if source is None:
        source = getattr(models, model).example_batch()
    data = source if source is DIGITS else load_data(source)
    run = fit(getattr(models, model), None, data, settings=settings, num_steps=2, engine="eager")
    with elsewhere():
        drawn = figures(run, data)
    assert kinds | {"training"} <= drawn.keys(), sorted(kinds - drawn.keys())
    assert len(drawn) > 1
    # A model with codes is not a plain mixture, and a chain of noise is not a code.
    assert not {"mixture", "classes"} <= drawn.keys()
    assert not {"chain", "traversals"} <= drawn.keys()
    few = data if len(data) < 10 else data.subset(torch.arange(5))
    exported = run.to_arviz(few, num_samples=2)
    posterior = getattr(exported, "posterior", None)
    view = RunView(run, few, few.tensors)
    assert (posterior is None) == (not view.codes and not view.shared)
    observed = exported.observed_data
    assert len(observed.data_vars) > 0
    for group in (exported.posterior_predictive, exported.prior_predictive):
        assert set(group.data_vars) == set(observed.data_vars)
        assert all(np.isfinite(group[name]).all() for name in group.data_vars)


@pytest.mark.slow
def test_report_of_models_of_two_tensors_has_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "diagnose", lambda *_, **__: Diagnosis(()))  # another test's question
    np.savez(tmp_path / "some.npz", x=X.numpy(), y=SOME.numpy())
    np.savez(tmp_path / "halves.npz", x=X[:, :32].numpy(), y=X[:, 32:].numpy())
    pages = {}
    for model, file in (("SemiSupervisedVAE", "some.npz"), ("ConditionalVAE", "halves.npz")):
        fit(
            getattr(models, model),
            None,
            load_data(str(tmp_path / file), image_shape=(8, 8)),
            settings=NET,
            num_steps=2,
            directory=tmp_path / model,
        )
        pages[model] = report([tmp_path / model], tmp_path / f"{model}.html").read_text()
    for title in ("Classes", "Confusion", "Latent plane", "Reconstructions"):
        assert f"<h3>{title}</h3>" in pages["SemiSupervisedVAE"]
    assert "<h3>Filled in</h3>" in pages["ConditionalVAE"]
