"""Every file in the folder that asks a question runs, in seconds, and leaves its three traces."""

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import ppl_lvm.benchmarks
from ppl_lvm.benchmarks.harness import Result

FOLDER = Path(ppl_lvm.benchmarks.__path__[0])
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef run(" in path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_smoke(name: str, smoke: Callable[[str], tuple[Result, Path]]) -> None:
    result, folder = smoke(name)
    assert result["rows"]
    written = json.loads((folder / f"{name}.json").read_text())
    assert len(written["rows"]) == len(result["rows"])
    assert {"commit", "seed", "threads", "versions", "device"} <= set(written["environment"])
    assert written["environment"]["seed"] == 0
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NAMES)
def test_asks_a_question_and_keeps_the_calling_convention(name: str) -> None:
    module = importlib.import_module(f"ppl_lvm.benchmarks.{name}")
    first = (module.__doc__ or "").strip().partition("\n")[0]
    assert first.endswith("?"), f"{name} asks nothing: {first!r}"
    parameters = inspect.signature(module.run).parameters
    defaults = {key: parameters[key].default for key in ("smoke", "directory", "seed")}
    assert defaults == {"smoke": False, "directory": None, "seed": 0}
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters.values())
