"""Ways of taking a step that `speed.py` compares: ours at every level, Pyro, by hand, NumPyro.

    ways("vae 128", PROGRAMS["vae 128"]()) -> {name: maker of a function that takes a step}

A maker does everything that comes before the first step; the first calls may still compile.
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
COMPILING = (COMPILED, MANY, HAND_COMPILED)  # leave something in the inductor's cache

_LEARNT = 5  # steps after which a program is compiled


def variants(name: str, program: Program, seed: int = 0) -> dict[str, Maker]:
    """All ways that the program has, Pyro's first."""
    found: dict[str, Maker] = {PYRO: lambda: _pyro(program)}
    if program.jit is not None:
        found[JIT] = lambda: _pyro(program, jit=True)
    found[EAGER] = lambda: _ours(program, "eager")
    found[CAPTURED] = lambda: _ours(program, "captured")
    found[COMPILED] = lambda: _ours(program, "compiled")
    found[MANY] = lambda: _many(program)
    if program.handwritten_loss is not None:
        found[HAND] = lambda: _by_hand(program, compiled=False)
        found[HAND_COMPILED] = lambda: _by_hand(program, compiled=True)
    if numpyro_peers.installed() and name in numpyro_peers.PROGRAMS:
        found[UPDATE] = lambda: _numpyro(name, program, seed)[0]
        found[SCAN] = lambda: _numpyro(name, program, seed)[1]
    return found


def parameters(program: Program) -> list[Tensor]:
    """The unconstrained parameters that a step trains."""
    model, guide = program.make()
    with poutine.trace(param_only=True) as found, pyro.get_param_store().scope():
        program.loss().loss_and_grads(model, guide, *program.batch)
        values = [site["value"].unconstrained() for site in found.trace.nodes.values()]
    return list({id(p): p for p in values}.values())


def _numpyro(name: str, program: Program, seed: int) -> numpyro_peers.Steps:
    return numpyro_peers.steps(name, program.batch, program.many, seed)


def _pyro(program: Program, jit: bool = False) -> Step:
    model, guide = program.make()
    objective = program.jit if jit else program.loss
    assert objective is not None
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), objective())
    return _alone(lambda: svi.step(*program.batch))


def _ours(program: Program, level: Level) -> Step:
    model, guide = program.make()
    optimizer = pyro.optim.Adam({"lr": 1e-3})
    svi = CompiledSVI(model, guide, optimizer, program.loss(), engine=level)
    return _alone(lambda: svi.step(*program.batch))


def _many(program: Program) -> Step:
    model, guide = program.make()
    optimizer = pyro.optim.Adam({"lr": 1e-3})
    svi = CompiledSVI(model, guide, optimizer, program.loss(), engine="compiled")
    rows = torch.arange(len(program.batch[0])).expand(program.many, -1).contiguous()  # (S, B)
    first = iter(range(_LEARNT))  # steps one by one, so that only whole calls are compiled

    def several() -> object:
        for _ in first:
            svi.step(*program.batch)
        return svi.steps(*program.batch, rows=rows)

    return _alone(several)


def _alone(step: Step) -> Step:
    """A step with a parameter store of its own, swapped in and out: ways share names."""
    store = pyro.get_param_store()
    own: dict[str, Any] = {"_constraints": {}, "_params": {}, "_param_to_name": {}}

    def alone() -> object:
        kept = {name: getattr(store, name) for name in own}
        for name, value in own.items():
            setattr(store, name, value)
        try:
            return step()
        finally:
            for name, value in kept.items():
                setattr(store, name, value)

    return alone


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
