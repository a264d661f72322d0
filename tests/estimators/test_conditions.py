"""What every class of `estimators.__all__` says of itself, and refuses by name."""

import inspect
from pathlib import Path

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from torch import Tensor

import ppl_lvm.estimators as estimators
from ppl_lvm.estimators.base import Estimator

CLASSES = [getattr(estimators, name) for name in estimators.__all__]


def test_all_lists_exactly_the_classes_of_the_folder() -> None:
    folder = Path(inspect.getfile(estimators)).parent
    found = set()
    for path in folder.glob("*.py"):
        module = __import__(f"ppl_lvm.estimators.{path.stem}", fromlist=["_"])
        for name, thing in vars(module).items():
            if inspect.isclass(thing) and issubclass(thing, Estimator) and thing is not Estimator:
                found.add(name)
    assert found == set(estimators.__all__)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_conditions_are_data_on_the_class(cls: type[Estimator]) -> None:
    assert cls.target
    assert isinstance(cls.unbiased, bool)
    assert cls.requires in ("any", "reparameterized", "bernoulli", "discrete")
    assert "https://" in cls.paper
    assert cls.__doc__
    assert Estimator in cls.__mro__
    assert cls.__bases__ == (Estimator,), "finished classes are not subclassed"
    if cls.requires != "any":
        assert cls.fallback in estimators.__all__


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_too_few_particles_are_refused_at_construction(cls: type[Estimator]) -> None:
    with pytest.raises(ValueError, match=rf"{cls.__name__} needs at least {cls.min_particles}"):
        cls(num_particles=cls.min_particles - 1)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_a_fraction_of_a_particle_is_refused(cls: type[Estimator]) -> None:
    with pytest.raises(ValueError, match=r"whole number of particles, got 2\.5"):
        cls(num_particles=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "cls", [c for c in CLASSES if c.requires == "reparameterized"], ids=lambda c: c.__name__
)
def test_a_discrete_site_is_refused_by_name_with_a_remedy(cls: type[Estimator]) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", Bernoulli(0.5))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", Bernoulli(0.5))

    estimator = cls(num_particles=max(2, cls.min_particles))
    with pytest.raises(ValueError, match=rf"'z' \(Bernoulli\).*Use {cls.fallback}"):
        estimator.loss(model, guide, torch.zeros(2))


@pytest.mark.parametrize(
    "cls", [c for c in CLASSES if c.requires in ("discrete", "bernoulli")], ids=lambda c: c.__name__
)
def test_a_guide_without_a_discrete_site_is_refused_by_name(cls: type[Estimator]) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", Normal(0.0, 1.0))

    estimator = cls(num_particles=max(2, cls.min_particles))
    with pytest.raises(ValueError, match=r"'z' \(Normal\).*Use \w+\."):
        estimator.loss(model, guide, torch.zeros(2))
