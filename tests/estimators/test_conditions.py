"""Declared conditions of the package's estimators."""

import inspect
from pathlib import Path

import pytest

import ppl_lvm.estimators as estimators
from ppl_lvm.estimators.base import Estimator

CLASSES = [getattr(estimators, name) for name in estimators.__all__]


def test_all_lists_exactly_the_estimator_classes_of_the_folder() -> None:
    folder = Path(inspect.getfile(estimators)).parent
    names = set()
    for path in folder.glob("*.py"):
        module = __import__(f"ppl_lvm.estimators.{path.stem}", fromlist=["_"])
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, Estimator) and value is not Estimator:
                names.add(name)
    assert names == set(estimators.__all__)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_estimator_declares_conditions_on_the_class(cls: type[Estimator]) -> None:
    assert "https://" in cls.paper
    assert cls.__doc__
    assert Estimator in cls.__mro__
    assert cls.__bases__ == (Estimator,), "concrete estimators are not subclassed"
    if cls.requires != "any":
        assert cls.fallback in estimators.__all__
