"""Freed memory stays with the process where its C library can be asked for it."""

import resource
import subprocess
import sys
from typing import Any

import pytest

from ppl_lvm.compiler.backend import allocator as memory

_FAULTS = """
import resource, sys, torch
from ppl_lvm.compiler.backend.allocator import keep_freed_memory
granted = keep_freed_memory() if sys.argv[1] == "keep" else False
def work():
    for _ in range(20):
        tables = [torch.full((2**20,), 1.0) for _ in range(5)]  # 4 MB each
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(granted, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(mode: str) -> tuple[bool, int]:
    """Whether it was granted, and the pages that the system had to hand out for a second round."""
    out = subprocess.run(
        [sys.executable, "-c", _FAULTS, mode], capture_output=True, text=True, check=True
    )
    granted, faults = out.stdout.split()
    return granted == "True", int(faults)


@pytest.mark.slow
def test_no_page_is_handed_out_twice() -> None:
    granted, faults = pages("keep")
    if not granted:
        pytest.skip("the C library is not glibc, or the environment has chosen")
    tables = 20 * 5 * 2**22 // resource.getpagesize()
    assert faults < tables / 100


def test_what_the_environment_says_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    uncached: Any = memory.keep_freed_memory.__wrapped__
    assert not uncached()
