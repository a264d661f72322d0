"""Hand-written twins as implementations of estimators.

Twins are discovered: a module of `handwritten/` may define `twins` (see `handwritten/twins.py`).
"""

import importlib
import pkgutil
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from ppl_lvm import estimators
from ppl_lvm.benchmarks import handwritten as folder
from ppl_lvm.benchmarks.gradient_suite.implementations import Implementation
from ppl_lvm.benchmarks.gradient_suite.programs import KnownProgram, handwritten_parameters
from ppl_lvm.benchmarks.handwritten.twins import Surrogate, Twin
from ppl_lvm.programs.pair import ModelGuidePair


def handwritten(
    known: KnownProgram, pair: ModelGuidePair, num_particles: int
) -> Iterator[Implementation]:
    """All twins on this program, over the pair's tensors, in the order of our classes."""
    params = handwritten_parameters(pair.unconstrained_parameters)
    twins: list[Twin] = []
    for module in _modules_with_twins():
        twins += module.twins(known.name, params, num_particles)
    for twin in sorted(twins, key=lambda twin: estimators.__all__.index(twin.estimator)):
        cls = getattr(estimators, twin.estimator)
        yield Implementation(
            twin.estimator,
            "hand",
            cls.target,
            partial(_step, twin.surrogate),
            declared=cls.unbiased,
            objective=twin.state,
        )


def _modules_with_twins() -> Iterator[Any]:
    for info in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{folder.__name__}.{info.name}")
        if hasattr(module, "twins"):
            yield module


def _step(surrogate: Surrogate, x: Tensor) -> float:
    bound, S = surrogate(x)
    (-S.sum()).backward()
    return -float(bound.detach().sum())
