"""Every benchmark runs once, however many tests look at what it left."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_lvm.benchmarks.harness import Result

Smoke = Callable[[str], tuple[Result, Path]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests share one run of each benchmark, so they share a worker."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("benchmarks"))


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """Name of a benchmark -> what its smoke run returned, and its folder."""
    done: dict[str, tuple[Result, Path]] = {}

    def run(name: str) -> tuple[Result, Path]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            module = importlib.import_module(f"ppl_lvm.benchmarks.{name}")
            done[name] = module.run(smoke=True, directory=folder), folder
        return done[name]

    return run
