"""Hostile run directories execute nothing and fail in one sentence."""

import contextlib
import json
import shutil
import sys
import warnings
from pathlib import Path
from weakref import WeakValueDictionary

import pytest
import torch

from directory_attack import Attack
from execution_detector import Detector, detector
from hostile_directories import attacks
from ppl_lvm import fit, load_run
from ppl_lvm.core.messages import printable
from ppl_lvm.models import GaussianMixture
from ppl_lvm.programs import trust

REFUSALS = (ValueError, OSError, ImportError)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound run of a bundled program."""
    directory = tmp_path_factory.mktemp("sound") / "run"
    torch.manual_seed(0)
    x = torch.randn(24, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(GaussianMixture(2), None, x, num_steps=3, directory=directory, progress=False)
    record = json.loads((directory / "run.json").read_text())
    for checksum in ("checksum", "files"):  # an attacker would write its own
        del record[checksum]
    (directory / "run.json").write_text(json.dumps(record))
    return directory


@pytest.fixture(scope="module")
def watcher(fitted: Path) -> Detector:
    return detector(fitted.parents[1])


def outcome(attack: Attack, fitted: Path, folder: Path, watcher: Detector) -> list[str]:
    """The faults of loading the changed directory: executions, tracebacks, missing sentences."""
    directory, canary = folder / "run", folder / "canary"
    shutil.copytree(fitted, directory, ignore=shutil.ignore_patterns("pictures"))
    attack.change(directory, canary)
    faults, message = [], None
    modules, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(directory))  # as in a process that was started there
    try:
        with contextlib.chdir(directory), watcher.watch() as events, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                run = load_run(directory, trust=attack.trust)
                repr(run), run.parameters(), run.sample(2)
            except REFUSALS as error:
                message = str(error)
            except Exception as error:
                faults.append(f"{type(error).__name__}: {str(error)[:200]}")
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
    if canary.exists() or events:
        faults.append(f"EXECUTED {events}")
    if message is None and attack.sentence and not faults:
        faults.append("loaded")
    if message is not None and (printable(message) != message or message.count("\n") > 3):
        faults.append(f"no sentence: {message[:200]!r}")
    return faults


@pytest.fixture(autouse=True)
def _nothing_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_fitted", WeakValueDictionary())


def all_faults(
    chosen: list[Attack], fitted: Path, folder: Path, on: Detector
) -> dict[str, list[str]]:
    """The faults of each attack that has some."""
    faults = {}
    for number, attack in enumerate(chosen):
        place = folder / str(number)
        place.mkdir()
        if problems := outcome(attack, fitted, place, on):
            faults[attack.name] = problems
        shutil.rmtree(place)
    return faults


def test_some_hostile_directories_execute_nothing(
    fitted: Path, tmp_path: Path, watcher: Detector
) -> None:
    chosen = attacks(json.loads((fitted / "run.json").read_text()), 20)
    assert all_faults(chosen[::17], fitted, tmp_path, watcher) == {}


@pytest.mark.attack
def test_hostile_directories_execute_nothing(
    fitted: Path, tmp_path: Path, watcher: Detector
) -> None:
    chosen = attacks(json.loads((fitted / "run.json").read_text()), 600)
    assert len(chosen) > 900
    assert all_faults(chosen, fitted, tmp_path, watcher) == {}
