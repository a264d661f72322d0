"""Objectives in run.json, and objectives rebuilt from it."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pyro.infer
import pytest
import torch
from pyro.contrib.gp.kernels import RBF
from pyro.infer import ELBO, Trace_ELBO, Trace_MMD, TraceEnum_ELBO
from torch import nn

from ppl_lvm import estimators, fit, load_run
from ppl_lvm.core.torch_specs import describe
from ppl_lvm.estimators.objectives import is_rebuilt, rebuild, record_text
from small_programs import Factor, FactorGuide, factor_data

pytestmark = pytest.mark.usefixtures("no_figures")

OWN = [getattr(estimators, name) for name in estimators.__all__]
PYRO = [
    cls
    for name, cls in vars(pyro.infer).items()
    if inspect.isclass(cls) and issubclass(cls, ELBO) and cls not in (ELBO, Trace_MMD)
]
SHARED_NAMES = [cls for cls in PYRO if cls.__name__ in estimators.__all__]


def changed(default: Any) -> list[Any]:
    """Other values of an argument, of which a constructor may refuse some."""
    if isinstance(default, bool) or default is None:
        return [not default, 4, 0.25]
    return {int: [default * 2 + 1, default * 2], float: [default / 4, 2]}.get(type(default), [])


def with_other_settings(cls: type[ELBO]) -> ELBO:
    """An objective of the class with every argument changed that may be."""
    settings: dict[str, Any] = {}
    for p in inspect.signature(cls).parameters.values():
        if p.name == "max_iarange_nesting":  # a deprecated alias
            continue
        for value in changed(p.default):
            try:
                cls(**{**settings, p.name: value})
            except (ValueError, TypeError, AssertionError):
                continue
            settings[p.name] = value
            break
    assert settings
    return cls(**settings)


@pytest.mark.parametrize("cls", [*OWN, *[c for c in PYRO if c not in SHARED_NAMES]])
def test_every_objective_is_rebuilt_with_its_settings(cls: type[ELBO]) -> None:
    for built in (cls(), with_other_settings(cls)):
        other = rebuild(record_text(built))
        assert type(other) is cls
        for name, value in vars(built).items():
            if isinstance(value, bool | int | float | str | list | None):
                assert vars(other)[name] == value, name
    assert record_text(with_other_settings(cls)) != record_text(cls())


@pytest.mark.parametrize("cls", SHARED_NAMES)
def test_pyros_objective_with_a_name_of_ours_is_not_rebuilt_as_ours(cls: type[ELBO]) -> None:
    assert not is_rebuilt(cls())
    with pytest.raises(ValueError, match=r"cannot be built .* load_run\(directory, objective="):
        rebuild(record_text(cls()))


class Scaled(Trace_ELBO):
    """An objective of a user, whose argument `describe` cannot see."""

    def __init__(self, factor: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.weight = factor


def test_objective_that_its_text_does_not_determine_is_not_rebuilt() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    other_classes = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    for objective in (
        Scaled(3.0),
        Trace_MMD(kernel=RBF(input_dim=1)),
        estimators.NeuralBaseline(network=other_classes),
        estimators.NeuralBaseline(network=nn.Linear(3, 1)),
    ):
        assert not is_rebuilt(objective)
        with pytest.raises(ValueError, match="cannot be built"):
            rebuild(record_text(objective))
    assert is_rebuilt(estimators.NeuralBaseline(hidden=5, network=network))


def test_nesting_with_a_plate_of_particles_is_rebuilt() -> None:
    built = TraceEnum_ELBO(max_plate_nesting=2, num_particles=3, vectorize_particles=True)
    assert built.max_plate_nesting == 3
    assert "max_plate_nesting=2" in describe(built)
    assert rebuild(record_text(built)).max_plate_nesting == 3


def test_describe_lists_the_settings_of_a_partial_optimizer() -> None:
    assert describe(partial(torch.optim.SGD, lr=0.1)) == "SGD(lr=0.1)"


OBJECTIVES = {
    "Trace_ELBO(num_particles=7)": Trace_ELBO,
    "RenyiELBO(alpha=0.5, num_particles=7)": pyro.infer.RenyiELBO,
    "CUBO(num_particles=8, n=1.5, beta=0.8)": estimators.CUBO,
}
OPTIONS: dict[str, Any] = {"num_steps": 2, "engine": "eager", "progress": False}


@pytest.mark.parametrize("text", OBJECTIVES)
def test_loaded_run_has_the_objective_of_the_fit(text: str, tmp_path: Path) -> None:
    run = fit(Factor, FactorGuide, factor_data(12), objective=text, directory=tmp_path, **OPTIONS)
    assert run.record["objective"] == text
    assert type(run.pair.objective) is OBJECTIVES[text]
    loaded = load_run(tmp_path, model=Factor, guide=FactorGuide)
    assert describe(loaded.pair.objective) == text


def test_fit_warns_of_an_objective_that_the_directory_does_not_determine(tmp_path: Path) -> None:
    options = {**OPTIONS, "objective": Scaled(2.0), "directory": tmp_path}
    with pytest.warns(
        UserWarning, match=r"objective: Scaled\(\) cannot be built again .*objective="
    ):
        fit(Factor, FactorGuide, factor_data(12), **options)
    with pytest.raises(ValueError, match=r"objective: .*Scaled\(\) cannot be built"):
        load_run(tmp_path, model=Factor, guide=FactorGuide)
    loaded = load_run(tmp_path, model=Factor, guide=FactorGuide, objective=Scaled(2.0))
    assert vars(loaded.pair.objective)["weight"] == 2.0
