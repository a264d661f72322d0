"""One seed, one sequence of losses: CompiledSVI against `pyro.infer.SVI`."""

import importlib.util
from pathlib import Path
from typing import Any

import pyro
import pytest
from pyro.infer import SVI

from ppl_lvm.engine import CompiledSVI

_spec = importlib.util.spec_from_file_location(
    "engine_programs", Path(__file__).with_name("programs.py")
)
assert _spec is not None
assert _spec.loader is not None
programs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(programs)
PROGRAMS = programs.PROGRAMS


def losses(name: str, engine: str | None, steps: int, **adam: Any) -> tuple[list[Any], Any]:
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide, loss, batch = PROGRAMS[name]()
    optimizer = pyro.optim.Adam({"lr": 0.02, **adam})
    svi: Any = (
        SVI(model, guide, optimizer, loss)
        if engine is None
        else CompiledSVI(model, guide, optimizer, loss, engine=engine)  # type: ignore[arg-type]
    )
    return [svi.step(*batch) for _ in range(steps)], svi


def flat(values: list[Any]) -> list[float]:
    return [float(v) for value in values for v in (value if isinstance(value, tuple) else [value])]


@pytest.mark.parametrize("name", PROGRAMS)
def test_captured_takes_pyros_steps(name: str) -> None:
    expected, _ = losses(name, None, 50)
    got, svi = losses(name, "captured", 50)
    assert svi.level == "captured"
    assert flat(got) == pytest.approx(flat(expected), rel=1e-5)


def test_another_seed_takes_other_steps() -> None:
    """The wrong twin: the test above would see a step with other random numbers."""
    expected, _ = losses("vae", None, 5)
    model, guide, loss, batch = PROGRAMS["vae"]()
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss)
    assert [svi.step(*batch) for _ in range(5)] != pytest.approx(expected, rel=1e-5)
