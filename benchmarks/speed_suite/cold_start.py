"""One way of `speed.py` in a process of its own: how long until the first step, how much memory.

    python -m ppl_lvm.benchmarks.speed_suite.cold_start "vae 128" compiled

prints one line of JSON: seconds from the end of the imports to the first step at that level, and
the process's largest resident memory. With an empty inductor's cache that is a cold start.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyro

from ppl_lvm.benchmarks.speed_suite.programs import PROGRAMS
from ppl_lvm.benchmarks.speed_suite.variants import COMPILING, variants

WARM_UP = 5  # calls until every way takes steps at its level
_LONGEST = 900.0  # seconds a process may take


def starts(name: str, way: str) -> dict[str, float | None]:
    """Seconds cold and warm until a step is taken, and megabytes, each in a fresh process."""
    with tempfile.TemporaryDirectory() as cache:
        cold = _fresh(name, way, cache)
        warm = _fresh(name, way, cache) if way in COMPILING else cold
    return {
        "cold start (s)": cold["seconds"],
        "warm start (s)": warm["seconds"],
        "peak MB": cold["megabytes"],
    }


def _fresh(name: str, way: str, cache: str) -> dict[str, Any]:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    words = [sys.executable, "-m", "ppl_lvm.benchmarks.speed_suite.cold_start", name, way]
    nothing = {"seconds": None, "megabytes": None}
    try:
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=_LONGEST
        )
    except subprocess.TimeoutExpired:
        return nothing
    if done.returncode:
        return nothing
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(name: str, way: str) -> dict[str, float]:
    pyro.set_rng_seed(0)
    program = PROGRAMS[name]()
    make = variants(name, program)[way]
    begun = time.perf_counter()
    step = make()
    for _ in range(WARM_UP):
        step()
    return {"seconds": time.perf_counter() - begun, "megabytes": _peak()}


def _peak() -> float:
    """Megabytes that this program has had in memory at most.

    Linux counts what the process that started it had into `ru_maxrss`, so that it is read there
    from the program's own address space.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:3])))
