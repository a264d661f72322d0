"""Many fits: growth of memory and descriptors, and threads."""

import asyncio
import gc
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_lvm import fit

MEGABYTE = 2**20
X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))


def model(x: Tensor) -> None:
    m = pyro.param("m", torch.zeros(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m + z[..., None], 1.0).to_event(1), obs=x)


def usage() -> tuple[float, int]:
    """Resident megabytes, and open descriptors."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE, len(os.listdir("/proc/self/fd"))


def growth(rounds: int, **options: Any) -> tuple[float, int]:
    """Growth over `rounds` fits, after as many as a tenth of them."""
    before = (0.0, 0)
    for number in range(rounds + rounds // 10 + 1):
        if number == rounds // 10 + 1:
            before = usage()
        fit(model, None, X, progress=False, seed=number, **options)
    memory, descriptors = usage()
    return memory - before[0], descriptors - before[1]


@pytest.mark.attack
@pytest.mark.parametrize("level", ["eager", "captured"])
def test_two_hundred_fits_keep_memory_and_descriptors(level: str, tmp_path: Path) -> None:
    memory, descriptors = growth(200, engine=level, num_steps=3)
    print(f"200 fits, {level}: {memory:.1f} MB, {descriptors} descriptors")
    assert memory < 20
    assert descriptors <= 0


@pytest.mark.attack
@pytest.mark.parametrize("level", ["eager", "captured", "compiled"])
def test_twenty_thousand_steps_keep_memory_and_descriptors(level: str) -> None:
    fit(model, None, X, progress=False, engine=level, num_steps=2000)
    before = usage()
    fit(model, None, X, progress=False, engine=level, num_steps=20_000)
    memory, descriptors = (new - old for new, old in zip(usage(), before, strict=True))
    print(f"20,000 steps, {level}: {memory:.1f} MB, {descriptors} descriptors")
    assert memory < 10
    assert descriptors <= 0


def numbers(seed: int) -> str:
    """All numbers of a fit, at another level for each seed."""
    level = ("eager", "captured", "auto")[seed % 3]
    run = fit(model, None, X, progress=False, seed=seed, engine=level, num_steps=5)
    parameters = {name: value.tolist() for name, value in run.parameters().items()}
    draws = run.sample(3, seed=seed)["x"].tolist()
    return str([run.history["bound"], parameters, draws, run.encode(X)["z"].tolist()])


def in_threads(count: int) -> list[str]:
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(numbers, range(FITS)))


async def in_asyncio() -> list[str]:
    return await asyncio.gather(*(asyncio.to_thread(numbers, seed) for seed in range(FITS)))


FITS = 40
FORMS: dict[str, Callable[[], list[str]]] = {
    "two threads": lambda: in_threads(2),
    "eight threads": lambda: in_threads(8),
    "asyncio": lambda: asyncio.run(in_asyncio()),
}


@pytest.fixture(scope="module")
def alone() -> list[str]:
    return [numbers(seed) for seed in range(FITS)]


@pytest.mark.attack
@pytest.mark.parametrize("form", FORMS)
def test_forty_fits_in_threads_are_those_alone(alone: list[str], form: str) -> None:
    equal = [a == b for a, b in zip(alone, FORMS[form](), strict=True)]
    print(f"{form}: {sum(equal)} of {FITS} fits are those alone")
    assert all(equal)
