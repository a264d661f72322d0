"""Fixture: one smoke run per benchmark, shared by tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from benchmark_runs import smoke_run

from ppl_lvm.benchmarks.harness import Result

Smoke = Callable[[str], tuple[Result, Path]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests share one run of each benchmark, so they share a worker."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("benchmarks"))


@pytest.fixture(scope="session")
def smoke() -> Smoke:
    """Name of a benchmark -> (result of its smoke run, folder)."""
    return smoke_run
