"""Public calls wait for each other and restore process-global state."""

import asyncio
import contextlib
import inspect
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

import command_line
import ppl_lvm as lvm
from ppl_lvm.models.implicit import Implicit
from ppl_lvm.report.report import report
from ppl_lvm.runs.adversarial import Adversaries

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def model(x: Tensor) -> None:
    m = pyro.param("m", torch.zeros(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m + z[..., None], 1.0).to_event(1), obs=x)


def mean_model(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)


def _fit(seed: int = 0, program: Any = model, **options: Any) -> lvm.Run:
    return lvm.fit(program, None, X, seed=seed, progress=False, **{"num_steps": 5, **options})


def _fit_em() -> lvm.Run:
    return lvm.fit_em(lvm.models.GaussianMixture(2), X, max_iterations=3)


def _fit_mcem(folder: Path | None = None) -> lvm.Run:
    options: dict[str, Any] = {"num_draws": 2, "warmup": 2, "guide_steps": 2, "progress": False}
    return lvm.fit_mcem(lvm.models.PPCA(1), X, max_iterations=1, directory=folder, **options)


def _adversaries(folder: Path) -> Adversaries:
    options: dict[str, Any] = {"num_steps": 2, "progress": False, "directory": folder}
    return lvm.fit_adversarial(Implicit(2), X, **options)


def _svi() -> lvm.CompiledSVI:
    optimizer, loss = pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO()
    return lvm.CompiledSVI(model, AutoNormal(poutine.block(model, hide=["m"])), optimizer, loss)


class Runs:
    """Results that the cases read, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        np.savetxt(folder / "x.csv", X.numpy(), delimiter=",")
        self.saved = _fit(directory=folder / "run")
        np.savetxt(folder / "few.csv", X[:8].numpy(), delimiter=",")
        lvm.fit(lvm.models.PPCA(1), None, folder / "few.csv", num_steps=1, progress=False).save(
            folder / "csv"
        )
        self.other = _fit(1)
        self.shared = lvm.fit(mean_model, None, X[:8], method="laplace", progress=False)
        self.adversaries = _adversaries(folder / "adversaries")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # short fits
        return Runs(tmp_path_factory.mktemp("runs"))


# Every function of `ppl_lvm.__all__`, every method of its runs, and what is called beside them.
CASES: dict[str, Callable[[Runs], Any]] = {
    "CompiledSVI": lambda runs: _svi(),
    "Run.batch": lambda runs: runs.saved.batch(X),
    "Run.data": lambda runs: lvm.load_run(runs.folder / "csv").data(),
    "Run.decode": lambda runs: runs.saved.decode(torch.zeros(3)),
    "Run.diagnose": lambda runs: runs.saved.diagnose(X, temperatures=3),
    "Run.edit": lambda runs: runs.saved.edit(X, torch.ones(())),
    "Run.encode": lambda runs: runs.saved.encode(X),
    "Run.example_batch": lambda runs: runs.saved.example_batch(3),
    "Run.history_frame": lambda runs: runs.saved.history_frame(),
    "Run.impute": lambda runs: runs.saved.impute(X, num_samples=2),
    "Run.is_training_data": lambda runs: runs.saved.is_training_data((X,)),
    "Run.log_evidence": lambda runs: runs.saved.log_evidence(X, 5),
    "Run.posterior": lambda runs: runs.shared.posterior(10),
    "Run.predict": lambda runs: runs.shared.predict(X, num_samples=10),
    "Run.summary": lambda runs: runs.shared.summary(),
    "Run.verify": lambda runs: runs.shared.verify(draws=10, warmup=10),
    "Run.training_weights": lambda runs: runs.saved.training_weights(),
    "Run.parameters": lambda runs: runs.saved.parameters(),
    "Run.rows": lambda runs: runs.saved.rows(X),
    "Run.sample": lambda runs: runs.saved.sample(3),
    "Run.save": lambda runs: runs.other.save(runs.folder / "other"),
    "Run.to_arviz": lambda runs: runs.saved.to_arviz(X, num_samples=3),
    "Run.training_rows": lambda runs: runs.saved.training_rows(),
    "Adversaries.sample": lambda runs: runs.adversaries.sample(3),
    "Adversaries.save": lambda runs: runs.adversaries.save(runs.folder / "adversaries"),
    "Adversaries.two_sample": lambda runs: runs.adversaries.two_sample(X),
    "check": lambda runs: lvm.check(model, None, X),
    "compare": lambda runs: lvm.compare([runs.saved, runs.other], X),
    "diagnose": lambda runs: lvm.diagnose(runs.saved, X, temperatures=3),
    "fit": lambda runs: _fit(program=lvm.models.PPCA(1), restarts=2, directory=runs.folder / "new"),
    "fit_adversarial": lambda runs: _adversaries(runs.folder / "new_adversaries"),
    "fit_em": lambda runs: _fit_em(),
    "fit_mcem": lambda runs: _fit_mcem(runs.folder / "mcem"),
    "load_adversaries": lambda runs: lvm.load_adversaries(runs.folder / "adversaries"),
    "load_data": lambda runs: lvm.load_data(runs.folder / "x.csv"),
    "load_run": lambda runs: lvm.load_run(runs.folder / "run", model=model),
    "sweep": lambda runs: lvm.sweep(
        lvm.models.PPCA,
        None,
        X,
        {"settings.latent": [1]},
        directory=runs.folder / "sweep",
        jobs=1,
        options={"num_steps": 2},
        progress=False,
    ),
    "sample_prior": lambda runs: lvm.sample_prior(model, X, 3),
    "signature": lambda runs: lvm.signature(model, X),
    "report": lambda runs: report([runs.folder / "csv"], runs.folder / "report.html"),
    "command line": lambda runs: command_line.run_command("fit", "nothing", folder=runs.folder),
}


def _public() -> set[str]:
    """Names of functions, and of classes that draw or train, that a case is due for."""
    names = {"CompiledSVI"}
    for owner in (lvm.Run, Adversaries):
        names |= {
            f"{owner.__name__}.{name}"
            for name, value in inspect.getmembers(owner, inspect.isfunction)
            if not name.startswith("_")
        }
    for name in lvm.__all__:
        value = getattr(lvm, name)
        if not isinstance(value, ModuleType | type | str):
            names.add(name)
    return names


def test_every_public_function_has_a_case() -> None:
    assert _public() <= CASES.keys()


def state_of_the_process() -> dict[str, Any]:
    """State that a public call restores, in a form that can be compared."""
    np_state: Any = np.random.get_state()
    loggers = [log for log in logging.root.manager.loggerDict.values() if hasattr(log, "level")]
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (np_state[1].tolist(), np_state[2:]),
        "random": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "loggers": {log.name: (log.level, log.handlers[:]) for log in [logging.root, *loggers]},
        "rcParams": dict(mpl.rcParams),
        "figures": pyplot.get_fignums(),
        "store": {k: (v.tolist(), v.unconstrained()) for k, v in pyro.get_param_store().items()},
        "handlers": _PYRO_STACK[:],
        "settings": pyro.settings.get(),
        "path": sys.path[:],
        "stubs": {k for k, m in sys.modules.items() if getattr(m, "__spec__", None) is None},
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


def assert_unchanged(before: dict[str, Any]) -> None:
    after = state_of_the_process()
    known = after["loggers"]
    after["loggers"] = {name: known[name] for name in before["loggers"]}  # imports make others
    assert [key for key in before if str(before[key]) != str(after[key])] == []


@pytest.fixture
def unusual(doubles: None) -> Iterator[None]:
    """A process whose state is nowhere the usual one."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(12345)
    np.random.seed(6)
    random.seed(7)
    pyro.param("m", torch.full((2,), 3.0))
    pyro.param("users", torch.ones(1))
    with warnings.catch_warnings(), mpl.rc_context({"lines.linewidth": 3.0}), poutine.trace():
        warnings.filterwarnings("ignore", message="of this test")
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_public_call_leaves_the_process_as_it_was(name: str, runs: Runs, unusual: None) -> None:
    before = state_of_the_process()
    CASES[name](runs)
    assert_unchanged(before)


def careless(x: Tensor) -> None:
    """A program that changes the state of the process, and fails."""
    torch.randn(1)
    np.random.rand()
    random.random()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    warnings.simplefilter("ignore")
    logging.getLogger("ppl_lvm").setLevel(logging.CRITICAL)
    pyro.enable_validation(False)
    pyro.param("left", torch.ones(1))
    sys.path.append("elsewhere")
    os.environ["PPL_LVM_TEST"] = "1"
    raise ValueError("on purpose")


def test_public_call_that_raises_leaves_the_process_as_it_was(unusual: None) -> None:
    before = state_of_the_process()
    for call in (
        lambda: _fit(program=careless),
        lambda: lvm.signature(careless, X),
        lambda: lvm.check(careless, careless, X),
        lambda: lvm.load_data("no such file.csv"),
    ):
        with contextlib.suppress(ValueError, FileNotFoundError):
            call()
        assert_unchanged(before)


# Threads


def _numbers(seed: int) -> list[Any]:
    run = _fit(seed, engine=("eager", "auto")[seed % 2])
    codes, draws = run.encode(X)["z"], run.sample(3, seed=seed)["x"]
    evidence = run.log_evidence(X, 5, seed=seed)
    parameters = {name: value.tolist() for name, value in run.parameters().items()}
    return [run.history["bound"], parameters, codes.tolist(), draws.tolist(), str(evidence)]


@pytest.mark.slow
def test_fits_in_threads_are_those_alone() -> None:
    alone = [_numbers(seed) for seed in range(3)]
    before, results = state_of_the_process(), [list[Any]()] * 3

    def work(seed: int) -> None:
        results[seed] = _numbers(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == alone
    assert_unchanged(before)

    async def together() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(_numbers, seed) for seed in range(2)))

    assert asyncio.run(together()) == alone[:2]


@pytest.mark.slow
def test_fit_inside_another_program_is_the_fit_alone() -> None:
    alone, inside = _fit(1, engine="eager"), []

    def nesting(x: Tensor) -> None:
        if len(inside) < 3:
            inside.append(_fit(1, engine="eager").history)
        model(x)

    assert _fit(program=nesting, engine="eager").history == _fit(engine="eager").history
    assert inside == [alone.history] * 3


def test_fit_inside_a_handler_that_changes_programs_is_refused() -> None:
    with poutine.scale(scale=2.0), pytest.raises(ValueError, match=r"fit: called inside.*'scale'"):
        _fit()
    with poutine.trace() as traced:
        _fit(num_steps=1)
    assert list(traced.trace.nodes) == []


def test_compiled_svi_in_two_threads_that_alternate_is_refused() -> None:
    first, second = _svi(), _svi()
    first.step(X)
    other = threading.Thread(target=second.step, args=(X,))
    other.start()
    other.join()
    with pytest.raises(ValueError, match="another thread takes steps"):
        first.step(X)


def test_forked_process_gets_a_free_lock() -> None:
    """The parent's call of another thread does not go on in a child, which would wait for ever."""
    entered, leave = threading.Event(), threading.Event()

    def waiting(x: Tensor) -> None:
        entered.set()
        leave.wait(60)
        raise ValueError("on purpose")

    def holds() -> None:
        with pytest.raises(ValueError):
            lvm.signature(waiting, X)

    thread = threading.Thread(target=holds)
    thread.start()
    entered.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if _PYRO_STACK == [] and lvm.load_data(X) is not None else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    leave.set()
    thread.join()
