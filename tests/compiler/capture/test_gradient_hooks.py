"""Gradient hooks of parameters in captured steps."""

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import captured_programs as programs
from ppl_lvm import CannotCaptureError, CapturedELBO, CompiledSVI

Notes = list[tuple[str, float]]


def note_norms(notes: Notes) -> None:
    for name, value in pyro.get_param_store().named_parameters():
        value.register_hook(lambda g, name=name: notes.append((name, g.norm().item())))


def clamp_and_note(notes: Notes) -> None:
    for name, value in pyro.get_param_store().named_parameters():
        value.register_hook(lambda g: g.clamp(-0.5, 0.5))
        value.register_post_accumulate_grad_hook(
            lambda p, name=name: notes.append((name, p.grad.norm().item()))
        )


def run(
    make: Any, register: Any, at: int = 1, loss: Any = None, **options: Any
) -> tuple[list[float], Notes, Any]:
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide, elbo, batch = programs.PROGRAMS["vae"]()
    svi = make(model, guide, pyro.optim.Adam({"lr": 0.02}), loss or elbo, **options)
    losses, notes = [], Notes()
    for step in range(14):
        if step == at:
            register(notes)
        losses.append(svi.step(*batch))
    return losses, notes, svi


@pytest.mark.parametrize("at", [1, 8])
@pytest.mark.parametrize("register", [note_norms, clamp_and_note])
def test_hooks_of_parameters_run_after_captured_steps_as_in_svi(register: Any, at: int) -> None:
    expected, expected_notes, _ = run(SVI, register, at)
    losses, notes, svi = run(CompiledSVI, register, at, engine="captured")
    assert losses == pytest.approx(expected, rel=1e-5)
    assert [name for name, _ in notes] == [name for name, _ in expected_notes]
    norms = [norm for _, norm in expected_notes]
    assert [norm for _, norm in notes] == pytest.approx(norms, rel=1e-4)
    assert all(type(norm) is float for _, norm in notes)
    assert svi.level == "captured"


def test_hooks_on_several_backward_passes_run_eagerly_with_the_reason() -> None:
    loss = Trace_ELBO(num_particles=2)
    expected, expected_notes, _ = run(SVI, note_norms, loss=loss)
    losses, notes, svi = run(CompiledSVI, note_norms, loss=loss)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len(notes) == len(expected_notes)
    assert "several backward passes" in svi.capture_error


def test_compiled_level_refuses_hooks_of_parameters() -> None:
    with pytest.raises(CannotCaptureError, match="gradient hooks of parameters run after each"):
        run(CompiledSVI, note_norms, engine="compiled")


def test_captured_elbo_leaves_hooks_to_the_backward_pass_of_its_caller() -> None:
    norms: list[list[float]] = []
    for elbo in (Trace_ELBO(), CapturedELBO(Trace_ELBO())):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        model, guide, _, batch = programs.PROGRAMS["vae"]()
        loss_of = elbo(model, guide)
        loss_of(*batch)
        seen: dict[int, list[float]] = {}
        for place, p in enumerate(loss_of.parameters()):
            values = seen.setdefault(place, [])
            p.register_hook(lambda g, values=values: values.append(g.norm().item()))
        for _ in range(6):
            loss: Tensor = loss_of(*batch)
            loss.backward()
        norms.append([norm for values in seen.values() for norm in values])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert torch.tensor(norms[0]).numel() % 6 == 0
