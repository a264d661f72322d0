"""`CompiledSVI` against `pyro.infer.SVI`: one seed, one sequence of losses."""

import copy
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI

import captured_programs as programs
from ppl_lvm.compiler import CannotCaptureError, CompiledSVI

PROGRAMS = programs.PROGRAMS


def losses(name: str, engine: str | None, steps: int, **adam: Any) -> tuple[list[Any], Any]:
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide, loss, batch = PROGRAMS[name]()
    optimizer = pyro.optim.Adam({"lr": 0.02, **adam})
    svi: Any = (
        SVI(model, guide, optimizer, loss)
        if engine is None
        else CompiledSVI(model, guide, optimizer, loss, engine=engine)  # type: ignore[arg-type]
    )
    return [svi.step(*batch) for _ in range(steps)], svi


def flat(values: list[Any]) -> list[float]:
    return [float(v) for value in values for v in (value if isinstance(value, tuple) else [value])]


@pytest.mark.parametrize("name", PROGRAMS)
def test_captured_svi_takes_pyros_steps(name: str) -> None:
    expected, _ = losses(name, None, 25)
    captured, svi = losses(name, "captured", 25)
    assert svi.level == "captured"
    assert flat(captured) == pytest.approx(flat(expected), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture", "belief net, decaying average"])
def test_compiled_svi_takes_pyros_steps(name: str) -> None:
    expected, _ = losses(name, None, 50)
    compiled, svi = losses(name, "compiled", 50)
    assert svi.level == "compiled"
    assert flat(compiled) == pytest.approx(flat(expected), rel=1e-5)


SLOW = ["vae", "vae, batch norm", "belief net, wake-sleep", "hmm", "subsampled", "gamma", "reparam"]
SLOW += ["AutoMultivariateNormal", "AutoIAFNormal", "mixture, guide", "vae, renyi"]
SLOW += ["correlations"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_compiled_svi_takes_pyros_steps_on_more_programs(name: str) -> None:
    test_compiled_svi_takes_pyros_steps(name)


def test_losses_differ_under_another_seed() -> None:
    """The wrong twin: the tests above detect a step with other random numbers."""
    expected, _ = losses("vae", None, 5)
    model, guide, loss, batch = PROGRAMS["vae"]()
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss)
    assert [svi.step(*batch) for _ in range(5)] != pytest.approx(expected, rel=1e-5)


OPTIMIZERS: dict[str, Any] = {
    "adam": lambda: pyro.optim.Adam({"lr": 0.05}),
    "adam, decay": lambda: pyro.optim.Adam({"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.9)}),
    "adamw": lambda: pyro.optim.AdamW({"lr": 0.05, "weight_decay": 0.1}),
    "clipped adam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "clip_norm": 0.5, "lrd": 0.95}),
    "centered": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "centered_variance": True}),
    "sgd": lambda: pyro.optim.SGD({"lr": 1e-3}),
    "momentum": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": lambda: pyro.optim.SGD({"lr": 1e-4, "momentum": 0.9, "nesterov": True}),
    "clip": lambda: pyro.optim.Adam({"lr": 0.05}, {"clip_norm": 0.3}),
    "per parameter": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if "loc" in name else 0.01}),
    "rmsprop": lambda: pyro.optim.RMSprop({"lr": 0.01}),
    "amsgrad": lambda: pyro.optim.Adam({"lr": 0.05, "amsgrad": True}),
    "no rate": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
    "partial": lambda: partial(torch.optim.Adam, lr=0.05),
    "schedule": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.9}
    ),
}


def losses_with(
    optimizer: Any, engine: Any, steps: int, name: str = "AutoMultivariateNormal"
) -> list[float]:
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide, loss, batch = PROGRAMS[name]()
    svi = CompiledSVI(model, guide, optimizer, loss, engine=engine)
    values = []
    for _ in range(steps):
        values.append(svi.step(*batch))
        if isinstance(optimizer, pyro.optim.PyroLRScheduler):
            optimizer.step()
    return values


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_captured_svi_takes_each_optimizers_steps(name: str) -> None:
    expected = losses_with(OPTIMIZERS[name](), "eager", 20)
    assert losses_with(OPTIMIZERS[name](), "captured", 20) == pytest.approx(expected, rel=1e-5)


COMPILED = ["adam, decay", "adamw", "clipped adam", "nesterov", "clip", "per parameter", "schedule"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_svi_takes_each_optimizers_steps(name: str) -> None:
    expected = losses_with(OPTIMIZERS[name](), "eager", 40, "mixture")
    assert losses_with(OPTIMIZERS[name](), "compiled", 40, "mixture") == pytest.approx(
        expected, rel=1e-5
    )


def test_compiled_svi_rejects_an_optimizer_without_a_flat_rule() -> None:
    with pytest.raises(CannotCaptureError, match=r"no flat rule.*Adam, AdamW, ClippedAdam, SGD"):
        losses_with(OPTIMIZERS["rmsprop"](), "compiled", 8)


@pytest.mark.parametrize("name", ["adam", "clipped adam", "momentum", "rmsprop"])
@pytest.mark.parametrize(("first", "second"), [("captured", "eager"), ("eager", "captured")])
def test_saved_state_resumes_at_another_level(name: str, first: str, second: str) -> None:
    """Parameters, optimizer and random state saved at one level continue at the other."""
    expected = losses_with(OPTIMIZERS[name](), "eager", 24)
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide, loss, batch = PROGRAMS["AutoMultivariateNormal"]()
    optimizer = OPTIMIZERS[name]()
    svi = CompiledSVI(model, guide, optimizer, loss, engine=first)  # type: ignore[arg-type]
    resumed = [svi.step(*batch) for _ in range(12)]
    state = copy.deepcopy(optimizer.get_state())
    again = OPTIMIZERS[name]()
    again.set_state(state)
    svi = CompiledSVI(model, guide, again, loss, engine=second)  # type: ignore[arg-type]
    resumed += [svi.step(*batch) for _ in range(12)]
    assert resumed == pytest.approx(expected, rel=1e-5)


def test_modules_see_flat_parameters_and_a_loaded_state_takes_effect() -> None:
    pyro.set_rng_seed(0)
    model, guide, loss, batch = PROGRAMS["vae"]()
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss, engine="captured")
    for _ in range(6):
        svi.step(*batch)
    state = copy.deepcopy(model.state_dict())
    svi.step(*batch)
    assert not torch.equal(state["net.0.weight"], model.net[0].weight)
    torch.manual_seed(1)
    model.load_state_dict(state)
    expected = svi.evaluate_loss(*batch)
    torch.manual_seed(1)
    assert svi.step(*batch) == pytest.approx(expected, rel=1e-5)


def test_svi_rejects_an_unknown_level_and_a_loss_without_gradient() -> None:
    model, guide, loss, batch = PROGRAMS["vae"]()
    optimizer = pyro.optim.Adam({"lr": 0.02})
    with pytest.raises(ValueError, match="engine='fast' is not among the choices"):
        CompiledSVI(model, guide, optimizer, loss, engine="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"loss: .*loss returns a float without a gradient"):
        CompiledSVI(model, guide, optimizer, loss.loss).step(*batch)


def test_svi_rejects_an_optimizer_with_parameters_and_rows_that_are_no_steps() -> None:
    model, guide, loss, batch = PROGRAMS["mixture"]()
    with_parameters: Any = torch.optim.Adam(model.parameters())
    for optimizer in (with_parameters, {"lr": 0.1}):
        with pytest.raises(ValueError, match=r"optim=.* Pass a PyroOptim or a function"):
            CompiledSVI(model, guide, optimizer, loss)
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss)
    for rows in (torch.arange(4), torch.zeros(2, 4)):
        with pytest.raises(ValueError, match=r"rows: must be integers \(S, B\)"):
            svi.steps(*batch, rows=rows)


ENGINES = ["eager", "captured", pytest.param("compiled", marks=pytest.mark.slow)]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mixture", "belief net, wake-sleep"])
def test_step_without_gradients_evaluates_and_changes_nothing(
    name: str, engine: Any, context: Any
) -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide, loss, batch = PROGRAMS[name]()
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss, engine=engine)
    for _ in range(6):
        svi.step(*batch)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for _ in range(4):
        torch.set_rng_state(random)
        with context():
            evaluated = svi.step(*batch)
        torch.set_rng_state(random)
        assert evaluated == svi.evaluate_loss(*batch)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    torch.set_rng_state(random)
    assert flat([svi.step(*batch)]) == pytest.approx(flat([evaluated]), rel=1e-5)
    # The wrong twin: a step with gradients does move the parameters.
    assert not all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_steps_after_evaluations_are_pyros(engine: Any) -> None:
    """Evaluations before and between steps; without momentum Pyro's SVI evaluates as well."""

    def run(svi: Any, batch: Any) -> list[float]:
        values = []
        for step in range(24):
            with torch.set_grad_enabled(step > 3 and step % 3 > 0):
                values.append(svi.step(*batch))
        return values

    pairs = []
    for make in (SVI, partial(CompiledSVI, engine=engine)):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        model, guide, loss, batch = PROGRAMS["mixture"]()
        pairs.append(run(make(model, guide, pyro.optim.SGD({"lr": 1e-3}), loss), batch))
    assert pairs[1] == pytest.approx(pairs[0], rel=1e-5)
    assert pairs[0][0] == pairs[0][3] > pairs[0][-1]


def test_steps_of_rows_without_gradients_evaluate_each() -> None:
    pyro.set_rng_seed(3)
    model, guide, loss, _ = PROGRAMS["mixture"]()
    data = programs.real(12)
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss, engine="captured")
    rows = torch.arange(12).view(3, 4)
    with torch.no_grad():
        losses_of_rows = svi.steps(data, rows=rows)
    assert losses_of_rows == [svi.evaluate_loss(data[r]) for r in rows]
    assert svi.num_captures == 0
