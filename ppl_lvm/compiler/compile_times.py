"""Durations of compilations on this machine.

Each compilation leaves the ratio of its wall time to the model's (`policy.CostModel`), per process
that ran for each processor, in Inductor's cache directory. The next one is announced by them.
"""

import getpass
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

_KEPT = 9  # measurements


def _file() -> Path:
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder is None:
        folder = str(Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}")
    return Path(folder) / "ppl_lvm_compile_times.json"


def _crowd() -> float:
    """Processes that run for each processor, with one more; 1 where all find a free one."""
    return max(1.0, (os.getloadavg()[0] + 1) / (os.cpu_count() or 1))


def _ratios() -> list[float]:
    with suppress(Exception):
        ratios = json.loads(_file().read_text())
        return [float(ratio) for ratio in ratios if 0 < float(ratio) < 1e4][-_KEPT:]
    return []


def note(seconds: float, expected: float) -> None:
    """Keep the duration of a compilation for which the model expects this many seconds."""
    with suppress(Exception):  # a folder that cannot be written, a system without a load average
        ratios = [*_ratios(), seconds / expected / _crowd()]
        path = _file()
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(f".{os.getpid()}")
        written.write_text(json.dumps(ratios[-_KEPT:]))
        written.replace(path)


@contextmanager
def timed(expected: float, begun: float | None = None) -> Iterator[None]:
    """Note the duration of the compilation in this block, unless a cache has its result.

    Args:
        expected: seconds by the model.
        begun: `time.time()` where it began earlier.
    """
    begun, hits = time.time() if begun is None else begun, _cache_hits()
    yield
    if _cache_hits() == hits:
        note(time.time() - begun, expected)


def _cache_hits() -> int:
    """Compiled graphs that this process has found in Inductor's cache."""
    from torch._dynamo.utils import counters

    tables = counters["aot_autograd"], counters["inductor"]
    return sum(t["autograd_cache_hit"] + t["fxgraph_cache_hit"] for t in tables)


def announced(expected: float) -> str:
    """The duration in words, from earlier compilations on this machine."""
    ratios = _ratios()
    if not ratios:
        return "the first one timed on this machine"
    with suppress(OSError):
        expected *= _crowd()
    return f"about {max(1.0, expected * median(ratios)):.0f} s as measured on this machine"
