"""Every model with every guide and objective it allows: captured steps are the eager ones.

What a pair allows is what `check` says suits it, so that nothing here is a list to be kept. Each
pair is tried with one of the objectives that suit it, taken in turn, so that over all pairs every
objective has its turn, for a few steps; `make exhaustive` tries every pair with them all, for the
50 steps that are promised. In double precision: some guides search along a line, and some models
start where a gradient is zero, and both make much of single precision's rounding.
"""

import importlib
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm import estimators
from ppl_lvm.checks import check
from ppl_lvm.compiler import CannotCaptureError
from ppl_lvm.compiler.capture.recorder import record
from ppl_lvm.data import load_data
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.sources import GuideFactory, ModelFactory
from ppl_lvm.training.loop import Training
from ppl_lvm.training.options import TrainingOptions
from ppl_lvm.training.preparation import prepare_pair

models: Any = importlib.import_module("ppl_lvm.models")
guides: Any = importlib.import_module("ppl_lvm.guides")

STEPS, FEW = 50, 10  # all that is promised, and as many as CI has time for
SGD = "SGD(lr=0.002, momentum=0.5)"
BUILDERS = [name for name in guides.__all__ if name not in ("label_free", "AutoGuide")]


def programs(model: str, guide: str, batch: tuple[Tensor, ...]) -> tuple[Any, Any]:
    pyro.set_rng_seed(0)
    made = ModelFactory(getattr(models, model)).make(batch)
    with pyro.get_param_store().scope():
        return made, GuideFactory(getattr(guides, guide)).make(made, batch)


def allowed(model: str) -> Iterator[tuple[str, tuple[Tensor, ...], list[str]]]:
    """The guides that serve a model: name, its batch, the objectives that suit the pair."""
    batch = getattr(models, model).example_batch(1)
    for guide in BUILDERS:
        try:
            issues = check(*programs(model, guide, batch), *batch)
        except Exception:  # not for this model
            continue
        if issues.ok:
            yield guide, batch, [s.name for s in issues.estimators if s.supported]


def steps(
    model: str,
    guide: str,
    objective: str | None,
    batch: tuple[Tensor, ...],
    engine: Any,
    number: int = STEPS,
    optimizer: str = SGD,
) -> Training:
    pair, summed = prepare_pair(*programs(model, guide, batch), objective, batch, load_data(batch))
    options = TrainingOptions(
        num_steps=number,
        batch_size=len(batch[0]),
        optimizer=optimizer,
        clip_norm=1.0,
        engine=engine,
    )
    training = Training(pair, load_data(batch), None, options, summed=summed)
    training.say = lambda line: None
    torch.manual_seed(1)
    for _ in range(number):
        training.step()
    return training


def differences(
    model: str, chosen: Any, engine: str = "auto", *how: Any, within: float = 1e-5
) -> Iterator[str]:
    """What is wrong with a model's captured or compiled steps, over its pairs; `how` as `steps`."""
    turn = itertools.count(models.__all__.index(model))
    for guide, batch, suits in allowed(model):
        for objective in chosen(suits, next(turn)):
            what = f"{model}, {guide}, {objective}"
            asked = (model, guide, objective, batch)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                eager = steps(*asked, "eager", *how)
                try:
                    quick = steps(*asked, engine, *how)
                except CannotCaptureError as refused:  # with "compiled", which takes no refusal
                    if "table of rows" not in str(refused):
                        yield f"{what}: {refused}"
                    continue
            wanted = torch.tensor(eager.history["bound"], dtype=torch.float64)
            found = torch.tensor(quick.history["bound"], dtype=torch.float64)
            off = float(((found - wanted).abs() / wanted.abs().clamp(min=1.0)).max())
            refusal = quick.step_runner.capture_error
            if refusal is not None and "table of rows" not in refusal:
                yield f"{what}: {refusal}"
            if not off <= within:
                yield f"{what}: off by {off:.1e}"


def every(suits: list[str], turn: int) -> list[str]:
    return suits


def one(suits: list[str], turn: int) -> list[str | None]:
    """The default, or one of ours, in turn; of many particles (the thermodynamic bound's) three."""
    ours = [name for name in suits if name in estimators.__all__]
    offered: list[str | None] = [None]
    for name in ours:
        many = getattr(estimators, name)().num_particles > 3
        offered.append(f"{name}(num_particles=3)" if many else name)
    return [offered[turn % len(offered)]]


ELSEWHERE = torch.device("meta")  # numbers are not asked for, only where they would lie


def misplaced(
    pair: ModelGuidePair, batch: tuple[Tensor, ...], parts: torch.device = ELSEWHERE
) -> str | None:
    """What a step on data elsewhere, with parameters and buffers on `parts`, says of devices.

    In torch's fake tensor mode, which refuses what a GPU would and needs none. A step that it
    cannot follow to the end is asked as far as it goes.
    """

    def moved(tensor: Tensor, device: torch.device) -> Any:
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        trained = isinstance(tensor, torch.nn.Parameter)
        return torch.nn.Parameter(made, tensor.requires_grad) if trained else made

    def step(*batch: Tensor) -> Any:
        return pair.objective.loss_and_grads(pair.model, pair.guide, *batch)

    with pair.scope():
        step(*batch)  # what is made lazily is there
        pyro.clear_param_store()
        with FakeTensorMode(allow_non_fake_inputs=True):
            for part in (part for _, module in pair.modules() for part in module.modules()):
                for kept in (part._parameters, part._buffers):
                    kept.update({k: moved(t, parts) for k, t in kept.items() if t is not None})
            given = [moved(tensor, ELSEWHERE) for tensor in batch]
            leaves = [p for _, module in pair.modules() for p in module.parameters()]
            try:
                record(lambda: step(*given), leaves, given)
            except CannotCaptureError as refused:
                return str(refused) if "DeviceMismatch" in str(refused) else None
    return None


@pytest.fixture(autouse=True)
def _doubles() -> None:
    torch.set_default_dtype(torch.float64)  # tests/conftest.py puts it back


@pytest.mark.parametrize("model", models.__all__)
def test_every_model_is_met_and_makes_its_tensors_where_its_data_are(model: str) -> None:
    met = next(allowed(model), None)
    assert met is not None, "no guide serves it on any of the batches"
    guide, batch, _ = met
    pair = prepare_pair(*programs(model, guide, batch), None, batch, load_data(batch))[0]
    assert misplaced(pair, batch) is None


def test_one_that_does_not_is_found() -> None:
    guide, batch, _ = next(allowed("VAE"))
    pair = prepare_pair(*programs("VAE", guide, batch), None, batch, load_data(batch))[0]
    assert "DeviceMismatch" in str(misplaced(pair, batch, torch.device("cpu")))


@pytest.mark.slow
@pytest.mark.parametrize("model", models.__all__)
def test_captured_steps_are_the_eager_ones(model: str) -> None:
    assert list(differences(model, one, "auto", FEW)) == []


COMPILED = [("GaussianMixture", "auto_guide", None), ("VAE", "AmortizedNormal", "IWAE")]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "guide", "objective"), COMPILED)
def test_so_are_compiled_ones(model: str, guide: str, objective: str | None) -> None:
    batch = next(batch for served, batch, _ in allowed(model) if served == guide)
    eager = steps(model, guide, objective, batch, "eager")
    compiled = steps(model, guide, objective, batch, "compiled")
    assert compiled.step_runner.level == "compiled"
    assert compiled.history["bound"] == pytest.approx(eager.history["bound"], rel=1e-5)


def uncompiled(graph: Any, inputs: list[Tensor], same_random: bool) -> Any:
    """The graph itself, once it is seen to fall apart into what the inductor knows."""
    with torch.no_grad():
        trace = make_fx(graph, decomposition_table=select_decomp_table(), tracing_mode="fake")
        trace(*inputs)
    return graph


UNLIKE = ["BayesianGaussianMixture", "BernoulliVAE", "DeepMarkovModel", "Diffusion"]
UNLIKE += ["GaussianMixture", "HiddenMarkovModel", "LatentDirichletAllocation", "NormalizingFlow"]


@pytest.mark.slow
@pytest.mark.parametrize("model", UNLIKE)
def test_so_are_those_that_would_be_compiled(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is ours of a compiled step; machine code takes far longer."""
    monkeypatch.setattr("ppl_lvm.compiler.backend.compiled_step.compile_graph", uncompiled)
    guide, batch, _ = next(pair for pair in allowed(model) if pair[0] != "LocalNormal")
    eager = steps(model, guide, None, batch, "eager", 5)
    compiled = steps(model, guide, None, batch, "compiled", 5)
    assert compiled.step_runner.level == "compiled"
    assert compiled.history["bound"] == pytest.approx(eager.history["bound"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("model", models.__all__)
def test_captured_steps_are_the_eager_ones_with_every_objective(model: str) -> None:
    assert list(differences(model, every)) == []


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("model", models.__all__)
def test_compiled_steps_are_the_eager_ones_with_every_guide(model: str) -> None:
    assert list(differences(model, one, "compiled")) == []


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("model", models.__all__)
def test_in_single_precision_adam_takes_the_same_first_steps(model: str) -> None:
    """Three steps, to 1e-4. The first losses are equal bit for bit; then Adam divides gradients by
    their own size and makes a whole step of what is rounding, guides that search along a line
    (SemiAmortized, LocalNormal) multiply it, and after fifty steps the losses of some pairs are
    as far apart as those of two orders of summation are: in double precision they are equal."""
    torch.set_default_dtype(torch.float32)
    assert list(differences(model, one, "auto", 3, "Adam(lr=0.001)", within=1e-4)) == []
