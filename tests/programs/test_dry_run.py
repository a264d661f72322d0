"""Dry runs leave generators, store and modules unchanged."""

import pyro
import pytest
import torch
from torch import nn

from ppl_lvm.programs.dry_run import dry_run


def test_dry_run_restores_everything_after_an_exception() -> None:
    norm = nn.BatchNorm1d(2)
    state = torch.get_rng_state()

    def stumble() -> None:
        pyro.param("new", torch.ones(1))
        norm(torch.randn(4, 2))
        raise RuntimeError("stumbled")

    with pytest.raises(RuntimeError, match="stumbled"), dry_run(norm):
        stumble()
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store().keys()) == []
    assert torch.equal(dict(norm.named_buffers())["running_mean"], torch.zeros(2))


def test_dry_runs_with_one_seed_are_equal() -> None:
    draws = []
    for _ in range(2):
        with dry_run(seed=5):
            draws.append(torch.randn(3))
    assert torch.equal(*draws)


def test_graph_of_a_dry_run_can_be_differentiated_outside() -> None:
    """Restoring an unchanged buffer would invalidate the graph that contains it."""
    layer = nn.Linear(2, 1)
    layer.register_buffer("unit", torch.tensor(2.0))
    with dry_run(layer):
        loss = (layer(torch.ones(2)) * layer.unit).sum()
    loss.backward()
    assert layer.weight.grad is not None
