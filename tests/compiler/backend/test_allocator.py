"""Allocator settings: freed memory stays in the process."""

import resource
import subprocess
import sys
from typing import Any

import pytest

from ppl_lvm.compiler.backend import allocator

_FAULTS = """
import resource, sys, torch
from ppl_lvm.compiler.backend.allocator import keep_freed_memory
configured = keep_freed_memory() if sys.argv[1] == "keep" else False
def work():
    for _ in range(20):
        tables = [torch.full((2**20,), 1.0) for _ in range(5)]  # 4 MB each
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(configured, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> tuple[bool, int]:
    """Success of the configuration, and the page faults of a second round."""
    out = subprocess.run(
        [sys.executable, "-c", _FAULTS, mode], capture_output=True, text=True, check=True
    )
    configured, faults = out.stdout.split()
    return configured == "True", int(faults)


@pytest.mark.slow
def test_second_round_of_allocations_needs_no_new_pages() -> None:
    configured, faults = page_faults("keep")
    if not configured:
        pytest.skip("the C library is not glibc, or the environment configures it")
    tables = 20 * 5 * 2**22 // resource.getpagesize()
    assert faults < tables / 100


def test_keep_freed_memory_respects_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    uncached: Any = allocator.keep_freed_memory.__wrapped__
    assert not uncached()
