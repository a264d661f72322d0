"""Programs with one fault: findings, or the numbers of Pyro."""

import importlib.util
import math
import os
import random
import re
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from bad_inputs import ERRORS, INTERNAL, ROOTS, Outcomes, problems
from program_mutations import Mutant, mutants
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

import ppl_lvm as lvm

STEPS, PARTICLES = 10, 100
SEED = int(os.environ.get("ATTACK_SEED", "0"))  # of the order of the mutants


def load(mutant: Mutant, path: Path) -> Any:
    """The module of a mutant, written to `path`."""
    path.write_text(mutant.source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    pyro.clear_param_store()
    spec.loader.exec_module(module)
    return module


def judge(mutant: Mutant, path: Path) -> str:
    """Fault of the answers of `check` and `fit` to a mutant."""
    torch.manual_seed(0)
    try:
        module = load(mutant, path)
        programs = module.model, module.guide
    except Exception:  # the user's module does not load: nothing of this package has run
        return ""
    issues: Any = []
    try:
        issues = lvm.check(*programs, *mutant.batch)
    except Exception as error:
        return f"check: {_fault(error, mutant, path)}" if _fault(error, mutant, path) else ""
    for issue in issues.errors:
        text = str(issue)
        if not (issue.site or issue.line) or not issue.remedy:
            return f"check names nothing: {text[:300]}"
    try:
        run = lvm.fit(
            *programs,
            mutant.batch if len(mutant.batch) > 1 else mutant.batch[0],
            num_steps=STEPS,
            engine="eager",
            progress=False,
            seed=1,
        )
    except Exception as error:
        fault = _fault(error, mutant, path)
        return f"fit: {fault}" if fault else ""
    if issues.errors:
        return ""
    return _difference(run, [i.code for i in issues])


def _fault(error: Exception, mutant: Mutant, path: Path) -> str:
    """ "" if an error names what the user wrote, or is raised at a line of it."""
    frames = traceback.extract_tb(error.__traceback__)
    text = f"{type(error).__name__}: {str(error)[:400]}"
    last = frames[-1].filename if frames else ""
    if last.startswith(ROOTS):
        return f"frame of ours {frames[-1].filename}:{frames[-1].lineno}: {text}"
    if last == str(path) or f"{path.name}:" in str(error):
        return ""  # the line of the user's program
    if any(f.filename == str(path) for f in frames):
        return "" if str(error) else f"empty: {text}"
    if not isinstance(error, ERRORS):
        return f"unexpected: {text}"
    if INTERNAL.search(str(error)):
        return f"words of internals: {text}"
    names = set(re.findall(r"[\"']([A-Za-z_]+)", mutant.source)) | {
        "argument",
        "row",
        "model",
        "guide",
    }
    if not any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in names):
        return f"unnamed: {text}"
    return ""


def _difference(run: Any, codes: list[str]) -> str:
    """Difference of the bound of a fit from Pyro's of the same pair."""
    batch = run.batch(run.training_data)
    model, guide = run.model, run.guide
    enumerates = any(s.enumerate for s in lvm.signature(model, *batch).sites)
    kind = TraceEnum_ELBO if enumerates else Trace_ELBO
    draws = []
    with warnings.catch_warnings(), torch.no_grad(), run.pair.scope():
        warnings.simplefilter("ignore")
        pyro.set_rng_seed(0)
        elbo = kind(max_plate_nesting=2) if enumerates else kind()
        try:
            for _ in range(PARTICLES):
                draws.append(-elbo.loss(model, guide, *batch) / len(batch[0]))
        except Exception as error:
            return (
                f"Pyro refuses what is trained: {type(error).__name__}: {str(error)[:200]} {codes}"
            )
    values = torch.tensor(draws, dtype=torch.float64)
    bound, error = run.results["bound"], run.results["bound_monte_carlo_error"] or 0.0
    if not math.isfinite(bound) or not values.isfinite().all():
        return f"bound {bound}, Pyro's {values.mean():.4f} {codes}"
    spread = math.hypot(error, float(values.std()) / PARTICLES**0.5)
    if abs(bound - values.mean()) > 6 * spread + 1e-3 * max(1.0, abs(bound)):
        return f"bound {bound:.4f} ± {error:.4f}, Pyro's {values.mean():.4f} ± {spread:.4f} {codes}"
    return ""


def outcomes(chosen: Iterable[Mutant], folder: Path) -> Outcomes:
    for number, mutant in enumerate(chosen):
        with warnings.catch_warnings(), pyro.get_param_store().scope():
            warnings.simplefilter("ignore")
            problem = judge(mutant, folder / f"mutant_{number}.py")
        yield mutant.name.partition(":")[0], f"{mutant.name}: {problem}" if problem else ""


def sample(count: int | None, seed: int) -> list[Mutant]:
    """Some of the mutants, by a seed."""
    every = list(mutants())
    random.Random(seed).shuffle(every)
    return every[:count]


@pytest.mark.attack
def test_mutated_programs_have_findings_or_the_numbers_of_pyro(tmp_path: Path) -> None:
    assert problems(outcomes(sample(None, SEED), tmp_path)) == ""


@pytest.mark.slow
def test_some_mutated_programs_have_findings_or_the_numbers_of_pyro(tmp_path: Path) -> None:
    assert problems(outcomes(sample(6, 0), tmp_path)) == ""
