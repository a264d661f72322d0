"""Contract of every benchmark: smoke run, files, calling convention."""

import importlib
import inspect
import json
from pathlib import Path

import pytest
from benchmark_runs import smoke_run

import ppl_lvm.benchmarks
from ppl_lvm.benchmarks.harness import question

FOLDER = Path(ppl_lvm.benchmarks.__path__[0])
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef run(" in path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_benchmark_smoke_run_writes_json_and_figure(name: str) -> None:
    result, folder = smoke_run(name)
    assert result["rows"]
    written = json.loads((folder / f"{name}.json").read_text())
    assert len(written["rows"]) == len(result["rows"])
    assert {"commit", "seed", "threads", "versions", "device"} <= set(written["environment"])
    assert written["environment"]["seed"] == 0
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_has_question_and_calling_convention(name: str) -> None:
    module = importlib.import_module(f"ppl_lvm.benchmarks.{name}")
    assert question(module.__doc__ or "").endswith("?")
    parameters = inspect.signature(module.run).parameters
    defaults = {key: parameters[key].default for key in ("smoke", "directory", "seed")}
    assert defaults == {"smoke": False, "directory": None, "seed": 0}
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters.values())
