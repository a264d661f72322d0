"""Variants of a training step: ours, Pyro, plain torch, NumPyro.

    variants("vae 128", PROGRAMS["vae 128"]()) -> {name: factory of a step function}

A factory does everything before the first step; the first calls may still compile.
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from ppl_lvm.benchmarks.speed_suite import numpyro_peers
from ppl_lvm.benchmarks.speed_suite.programs import Program
from ppl_lvm.compiler import CompiledSVI, Level

Step = Callable[[], object]
Maker = Callable[[], Step]

PYRO, JIT = "pyro", "pyro, torch.jit"
EAGER, CAPTURED, COMPILED, MANY = "eager", "captured", "compiled", "compiled, many steps a call"
HAND, HAND_COMPILED = "by hand", "by hand, torch.compile"
UPDATE, SCAN = "numpyro, jitted update", "numpyro, lax.scan"
SEVERAL = (MANY, SCAN)  # a call takes `Program.many` steps
COMPILING = (COMPILED, MANY, HAND_COMPILED)  # these fill the Inductor cache

_LEARNT = 5  # steps before a program is compiled


def variants(name: str, program: Program, seed: int = 0) -> dict[str, Maker]:
    """All variants of the program, Pyro's first."""
    makers: dict[str, Maker] = {PYRO: lambda: _pyro(program)}
    if program.jit is not None:
        makers[JIT] = lambda: _pyro(program, jit=True)
    makers[EAGER] = lambda: _ours(program, "eager")
    makers[CAPTURED] = lambda: _ours(program, "captured")
    makers[COMPILED] = lambda: _ours(program, "compiled")
    makers[MANY] = lambda: _many(program)
    if program.handwritten_loss is not None:
        makers[HAND] = lambda: _by_hand(program, compiled=False)
        makers[HAND_COMPILED] = lambda: _by_hand(program, compiled=True)
    if numpyro_peers.installed() and name in numpyro_peers.PROGRAMS:
        makers[UPDATE] = lambda: _numpyro(name, program, seed)[0]
        makers[SCAN] = lambda: _numpyro(name, program, seed)[1]
    return makers


def parameters(program: Program) -> list[Tensor]:
    """Unconstrained parameters of a step."""
    model, guide = program.make()
    with poutine.trace(param_only=True) as tracer, pyro.get_param_store().scope():
        program.loss().loss_and_grads(model, guide, *program.batch)
        values = [site["value"].unconstrained() for site in tracer.trace.nodes.values()]
    return list({id(p): p for p in values}.values())


def _numpyro(name: str, program: Program, seed: int) -> numpyro_peers.Steps:
    return numpyro_peers.steps(name, program.batch, program.many, seed)


def _pyro(program: Program, jit: bool = False) -> Step:
    model, guide = program.make()
    objective = program.jit if jit else program.loss
    assert objective is not None
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), objective())
    return _with_separate_store(lambda: svi.step(*program.batch))


def _ours(program: Program, level: Level) -> Step:
    model, guide = program.make()
    optimizer = pyro.optim.Adam({"lr": 1e-3})
    svi = CompiledSVI(model, guide, optimizer, program.loss(), engine=level)
    return _with_separate_store(lambda: svi.step(*program.batch))


def _many(program: Program) -> Step:
    model, guide = program.make()
    optimizer = pyro.optim.Adam({"lr": 1e-3})
    svi = CompiledSVI(model, guide, optimizer, program.loss(), engine="compiled")
    rows = torch.arange(len(program.batch[0])).expand(program.many, -1).contiguous()  # (S, B)
    first = iter(range(_LEARNT))  # single steps first, so that only whole calls are compiled

    def several() -> object:
        for _ in first:
            svi.step(*program.batch)
        return svi.steps(*program.batch, rows=rows)

    return _with_separate_store(several)


def _with_separate_store(step: Step) -> Step:
    """A step with a separate parameter store, because variants share parameter names."""
    store = pyro.get_param_store()
    separate: dict[str, Any] = {"_constraints": {}, "_params": {}, "_param_to_name": {}}

    def run() -> object:
        shared = {name: getattr(store, name) for name in separate}
        for name, value in separate.items():
            setattr(store, name, value)
        try:
            return step()
        finally:
            for name, value in shared.items():
                setattr(store, name, value)

    return run


def _by_hand(program: Program, compiled: bool) -> Step:
    assert program.parameters is not None
    assert program.handwritten_loss is not None
    params = program.parameters()
    leaves = [p for p in params.values() if p.requires_grad]
    optimizer = torch.optim.Adam(leaves, lr=1e-3)
    loss_of: Callable[..., Tensor] = (
        torch.compile(program.handwritten_loss) if compiled else program.handwritten_loss
    )

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(params, *program.batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
