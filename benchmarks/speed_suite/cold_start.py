"""Start time and memory of a variant.

    python -m ppl_lvm.benchmarks.speed_suite.cold_start "vae 128" compiled

prints one line of JSON: seconds from the end of the imports to the first step at that level, and
the peak resident memory of the process. With an empty Inductor cache this is a cold start.
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

WARM_UP = 5  # calls until every variant has reached its level
_LONGEST = 900.0  # timeout in seconds


def starts(name: str, variant: str) -> dict[str, float | None]:
    """Seconds of a cold and a warm start, and megabytes, each in a new process."""
    with tempfile.TemporaryDirectory() as cache:
        cold = _fresh(name, variant, cache)
        warm = _fresh(name, variant, cache) if variant in COMPILING else cold
    return {
        "cold start (s)": cold["seconds"],
        "warm start (s)": warm["seconds"],
        "peak MB": cold["megabytes"],
    }


def _fresh(name: str, variant: str, cache: str) -> dict[str, Any]:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    words = [sys.executable, "-m", "ppl_lvm.benchmarks.speed_suite.cold_start", name, variant]
    nothing = {"seconds": None, "megabytes": None}
    try:
        process = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=_LONGEST
        )
    except subprocess.TimeoutExpired:
        return nothing
    if process.returncode:
        return nothing
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def _measure(name: str, variant: str) -> dict[str, float]:
    pyro.set_rng_seed(0)
    program = PROGRAMS[name]()
    make = variants(name, program)[variant]
    start = time.perf_counter()
    step = make()
    for _ in range(WARM_UP):
        step()
    return {"seconds": time.perf_counter() - start, "megabytes": _peak()}


def _peak() -> float:
    """Peak resident memory of this process in megabytes.

    On Linux `ru_maxrss` includes the parent process, so the peak is read from /proc.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:3])))
