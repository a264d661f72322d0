"""Pyro's examples in miniature at every level."""

from typing import Any

import pyro
import pytest
from pyro.infer import SVI

import pyro_examples
from ppl_lvm import CompiledSVI
from pyro_examples import EXAMPLES


def losses(name: str, steps: int, engine: str | None) -> tuple[list[float], Any]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide, loss, batch = EXAMPLES[name]()
    optimizer = pyro.optim.Adam({"lr": 0.01})
    svi: Any = (
        SVI(model, guide, optimizer, loss)
        if engine is None
        else CompiledSVI(model, guide, optimizer, loss, engine=engine)  # type: ignore[arg-type]
    )
    pyro.set_rng_seed(1)
    return [svi.step(*batch) for _ in range(steps)], svi


# Pyro's distribution asserts that a concentration is below 10,000.
EAGER = {"sine": "Python reads the value of a tensor"}


def check(name: str, steps: int, engine: str) -> None:
    expected, _ = losses(name, steps, None)
    ours, svi = losses(name, steps, "auto" if name in EAGER else engine)
    if name in EAGER:
        assert svi.capture_error.startswith(f"{pyro_examples.__file__}:")
        assert EAGER[name] in svi.capture_error
    else:
        assert svi.level == engine
        assert svi.num_captures == 1
    assert ours == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("name", ["cvae", "mixed hmm", "scanvi"])
def test_example_is_captured_with_the_losses_of_svi(name: str) -> None:
    check(name, 8, "captured")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_captured_with_the_losses_of_svi_for_50_steps(name: str) -> None:
    check(name, 50, "captured")


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_compiled_with_the_losses_of_svi(name: str) -> None:
    check(name, 50, "compiled")
