"""Captured steps of every model and guide equal eager steps.

`check` decides which guides and objectives suit a model, so that no list is kept here. Each pair
takes a few steps with one suitable objective, in turn, so that over all pairs every objective is
used. `make exhaustive` takes 50 steps of every pair with every objective. Tests run in double
precision, because line searches of guides and zero initial gradients of models amplify rounding.
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

STEPS, FEW = 50, 6  # of `make exhaustive` and of CI
SGD = "SGD(lr=0.002, momentum=0.5)"
BUILDERS = [name for name in guides.__all__ if name not in ("label_free", "AutoGuide")]


def programs(model: str, guide: str, batch: tuple[Tensor, ...]) -> tuple[Any, Any]:
    pyro.set_rng_seed(0)
    program = ModelFactory(getattr(models, model)).make(batch)
    with pyro.get_param_store().scope():
        return program, GuideFactory(getattr(guides, guide)).make(program, batch)


def suitable_guides(model: str) -> Iterator[tuple[str, tuple[Tensor, ...], list[str]]]:
    """Suitable guides of a model: name, a batch, names of suitable objectives."""
    batch = getattr(models, model).example_batch(1)
    for guide in BUILDERS:
        try:
            issues = check(*programs(model, guide, batch), *batch)
        except Exception:  # the guide refuses this model
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
    model: str, select: Any, engine: str = "auto", *how: Any, within: float = 1e-5
) -> Iterator[str]:
    """Differences between a model's eager and other steps, over its guides.

    Args:
        model: its name.
        select: (suitable objectives, counter) -> the objectives to try.
        engine: level of the other steps.
        how: further arguments of `steps`.
        within: largest allowed relative difference of the bounds.
    """
    counter = itertools.count(models.__all__.index(model))
    for guide, batch, suits in suitable_guides(model):
        for objective in select(suits, next(counter)):
            name = f"{model}, {guide}, {objective}"
            pair = (model, guide, objective, batch)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                eager = steps(*pair, "eager", *how)
                try:
                    other = steps(*pair, engine, *how)
                except CannotCaptureError as error:  # raised by "compiled" only
                    if "table of rows" not in str(error):
                        yield f"{name}: {error}"
                    continue
            expected = torch.tensor(eager.history["bound"], dtype=torch.float64)
            bounds = torch.tensor(other.history["bound"], dtype=torch.float64)
            difference = float(((bounds - expected).abs() / expected.abs().clamp(min=1.0)).max())
            error_text = other.step_runner.capture_error
            if error_text is not None and "table of rows" not in error_text:
                yield f"{name}: {error_text}"
            if not difference <= within:
                yield f"{name}: relative difference {difference:.1e}"


def every(suits: list[str], index: int) -> list[str]:
    """All suitable objectives."""
    return suits


def one(suits: list[str], index: int) -> list[str | None]:
    """The default or one of the package's, in turn, with at most three particles."""
    bundled = [name for name in suits if name in estimators.__all__]
    choices: list[str | None] = [None]
    for name in bundled:
        many = getattr(estimators, name)().num_particles > 3
        choices.append(f"{name}(num_particles=3)" if many else name)
    return [choices[index % len(choices)]]


FAKE_DEVICE = torch.device("meta")  # without values


def device_mismatch(
    pair: ModelGuidePair, batch: tuple[Tensor, ...], device: torch.device = FAKE_DEVICE
) -> str | None:
    """The device error of a step on a fake device, with parameters and buffers on `device`.

    Torch's fake tensor mode refuses what a GPU would refuse. A step that it cannot trace to the end
    is tested as far as it goes.
    """

    def on_device(tensor: Tensor, device: torch.device) -> Any:
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        return torch.nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty

    def step(*batch: Tensor) -> Any:
        return pair.objective.loss_and_grads(pair.model, pair.guide, *batch)

    with pair.scope():
        step(*batch)  # makes lazy parameters
        pyro.clear_param_store()
        with FakeTensorMode(allow_non_fake_inputs=True):
            for part in (part for _, module in pair.modules() for part in module.modules()):
                for tensors in (part._parameters, part._buffers):
                    tensors.update(
                        {k: on_device(t, device) for k, t in tensors.items() if t is not None}
                    )
            data = [on_device(tensor, FAKE_DEVICE) for tensor in batch]
            leaves = [p for _, module in pair.modules() for p in module.parameters()]
            try:
                record(lambda: step(*data), leaves, data)
            except CannotCaptureError as error:
                return str(error) if "DeviceMismatch" in str(error) else None
    return None


pytestmark = pytest.mark.usefixtures("doubles")


@pytest.mark.slow
@pytest.mark.parametrize("model", models.__all__)
def test_every_model_has_a_guide_and_makes_tensors_on_the_device_of_its_data(model: str) -> None:
    first = next(suitable_guides(model), None)
    assert first is not None, "no guide suits the model"
    guide, batch, _ = first
    pair = prepare_pair(*programs(model, guide, batch), None, batch, load_data(batch))[0]
    assert device_mismatch(pair, batch) is None


@pytest.mark.slow
def test_device_mismatch_reports_parameters_on_another_device() -> None:
    guide, batch, _ = next(suitable_guides("VAE"))
    pair = prepare_pair(*programs("VAE", guide, batch), None, batch, load_data(batch))[0]
    assert "DeviceMismatch" in str(device_mismatch(pair, batch, torch.device("cpu")))


@pytest.mark.slow
@pytest.mark.parametrize("model", models.__all__)
def test_captured_steps_equal_eager_steps_for_every_model(model: str) -> None:
    assert list(differences(model, one, "auto", FEW)) == []


COMPILED = [("GaussianMixture", "auto_guide", None), ("VAE", "AmortizedNormal", "IWAE")]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "guide", "objective"), COMPILED)
def test_compiled_steps_equal_eager_steps(model: str, guide: str, objective: str | None) -> None:
    batch = next(batch for name, batch, _ in suitable_guides(model) if name == guide)
    eager = steps(model, guide, objective, batch, "eager")
    compiled = steps(model, guide, objective, batch, "compiled")
    assert compiled.step_runner.level == "compiled"
    assert compiled.history["bound"] == pytest.approx(eager.history["bound"], rel=1e-5)


def uncompiled(graph: Any, inputs: list[Tensor], same_random: bool) -> Any:
    """The graph itself, after its decomposition into the inductor's operations."""
    with torch.no_grad():
        trace = make_fx(graph, decomposition_table=select_decomp_table(), tracing_mode="fake")
        trace(*inputs)
    return graph


DISTINCT = ["BayesianGaussianMixture", "BernoulliVAE", "DeepMarkovModel", "Diffusion"]
DISTINCT += ["GaussianMixture", "HiddenMarkovModel", "LatentDirichletAllocation", "NormalizingFlow"]


@pytest.mark.slow
@pytest.mark.parametrize("model", DISTINCT)
def test_steps_prepared_for_the_compiler_equal_eager_steps(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's part of compilation, without machine code, which takes much longer."""
    monkeypatch.setattr("ppl_lvm.compiler.backend.compiled_step.compile_graph", uncompiled)
    guide, batch, _ = next(pair for pair in suitable_guides(model) if pair[0] != "LocalNormal")
    eager = steps(model, guide, None, batch, "eager", 5)
    compiled = steps(model, guide, None, batch, "compiled", 5)
    assert compiled.step_runner.level == "compiled"
    assert compiled.history["bound"] == pytest.approx(eager.history["bound"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("model", models.__all__)
def test_captured_steps_equal_eager_steps_with_every_objective(model: str) -> None:
    assert list(differences(model, every)) == []


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("model", models.__all__)
def test_compiled_steps_equal_eager_steps_with_every_guide(model: str) -> None:
    assert list(differences(model, one, "compiled")) == []


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("model", models.__all__)
def test_captured_steps_of_adam_equal_eager_steps_in_single_precision(model: str) -> None:
    """Three steps, to 1e-4.

    The first losses are equal bit for bit. Then Adam divides gradients by their size, so that a
    rounding error becomes a full step, and line searches (SemiAmortized, LocalNormal) amplify it.
    After fifty steps the losses of some pairs differ as much as with another order of summation.
    In double precision they are equal.
    """
    torch.set_default_dtype(torch.float32)
    assert list(differences(model, one, "auto", 3, "Adam(lr=0.001)", within=1e-4)) == []
