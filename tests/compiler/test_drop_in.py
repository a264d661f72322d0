"""`CompiledSVI` in the place of `pyro.infer.SVI`."""

import inspect
import sys
from types import ModuleType
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from ppl_lvm import CompiledSVI, accelerate

X = torch.linspace(-1, 3, 20)


def model(x: Tensor) -> None:
    mu = pyro.sample("mu", pyro.distributions.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", pyro.distributions.Normal(mu, 1.0), obs=x)


def losses(make: Any, **options: Any) -> list[float]:
    """Losses of ten steps."""
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope():
        svi = make(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.05}), **options)
        return [svi.step(X) for _ in range(10)]


def test_signature_begins_with_that_of_svi() -> None:
    ours = list(inspect.signature(CompiledSVI).parameters.values())
    theirs = [p for p in inspect.signature(SVI).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    assert [p.default for p in ours[: len(theirs)]] == [p.default for p in theirs]
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


def test_object_is_an_svi_with_its_attributes() -> None:
    optim, loss = pyro.optim.Adam({"lr": 0.05}), Trace_ELBO()
    svi = CompiledSVI(model=model, guide=AutoNormal(model), optim=optim, loss=loss)
    assert isinstance(svi, SVI)
    assert svi.optim is optim
    svi.evaluate_loss(X)  # makes the guide
    pyro.set_rng_seed(0)
    value = svi.loss(svi.model, svi.guide, X)
    pyro.set_rng_seed(0)
    assert svi.evaluate_loss(X) == pytest.approx(value)
    assert callable(svi.loss_and_grads)


@pytest.mark.parametrize("kind", ["differentiable", "and_grads", "elbo"])
def test_losses_given_as_functions_take_the_steps_of_svi(kind: str) -> None:
    elbo = Trace_ELBO()
    options: dict[str, Any] = {
        "differentiable": {"loss": elbo.differentiable_loss},
        "and_grads": {"loss": elbo.loss, "loss_and_grads": elbo.loss_and_grads},
        "elbo": {"loss": elbo},
    }[kind]
    captured = losses(CompiledSVI, engine="captured", **options)
    assert captured == pytest.approx(losses(SVI, **options), rel=1e-5)


def test_run_traces_the_posterior_after_its_steps() -> None:
    with pytest.warns(FutureWarning):
        svi = CompiledSVI(
            model,
            AutoNormal(model),
            pyro.optim.Adam({"lr": 0.05}),
            Trace_ELBO(),
            num_samples=3,
            num_steps=5,
        ).run(X)
    assert len(svi.exec_traces) == 3


def test_accelerate_replaces_svi_in_modules_that_have_imported_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package: Any = ModuleType("package")
    package.SVI = SVI
    monkeypatch.setitem(sys.modules, "package", package)
    with accelerate():
        assert package.SVI is pyro.infer.SVI
        assert issubclass(package.SVI, CompiledSVI)
        later: Any = ModuleType("later")
        exec("from pyro.infer import SVI", later.__dict__)
        monkeypatch.setitem(sys.modules, "later", later)
        accelerated = losses(package.SVI, loss=Trace_ELBO())
    assert package.SVI is pyro.infer.SVI is later.SVI is SVI
    assert accelerated == pytest.approx(losses(SVI, loss=Trace_ELBO()), rel=1e-5)
    replaced = accelerate()
    assert issubclass(pyro.infer.SVI, CompiledSVI)
    replaced.restore()
    assert pyro.infer.SVI is SVI
