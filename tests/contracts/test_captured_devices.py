"""Contract of devices: new tensors are on the data's device.

The test needs no GPU: tensors without numbers on the device "meta", under torch's fake tensor
mode, cannot be combined with those of the CPU, as a GPU's cannot.
"""

from typing import Any
from unittest.mock import Mock

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.backend.compiled_step import CompiledStep
from ppl_lvm.compiler.backend.multi_step import take_steps
from ppl_lvm.compiler.graph.ir import Recording
from ppl_lvm.compiler.optim.adapters import TorchOptimizerAdapter
from ppl_lvm.compiler.optim.flat import FlatOptimizer
from ppl_lvm.data import load_data
from ppl_lvm.programs.sources import GuideFactory, ModelFactory, move_to_batch_device
from ppl_lvm.training.preparation import prepare_pair

META = torch.device("meta")


class Line(nn.Module):
    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return (w * x).sum(), x.sum(0)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_compiled_step_takes_the_optimizers_scalars_on_the_device(optimizer: Any) -> None:
    """A kernel of a device cannot read tensors of the CPU."""
    w, x = nn.Parameter(torch.zeros(3, device=META)), torch.zeros(4, 3, device=META)
    recording = Recording(
        module=make_fx(Line())(w.detach(), x),
        sources=[],
        constants=[],
        active=[True],
        results=None,
        num_losses=1,
        mutated=[],
        rebinds=False,
        draws=False,
        tables=(0, 0),
    )
    groups = FlatOptimizer().plan(
        TorchOptimizerAdapter(optimizer([w], lr=0.1)).parameter_slots([w]) or []
    )
    assert groups is not None
    step = CompiledStep(recording, [w], groups, [x])
    values = [node.meta.get("val") for node in step.graph.graph.nodes]
    tensors = [tensor for value in values for tensor in pytree.tree_leaves(value)]
    assert {tensor.device for tensor in tensors if tensor is not None} == {META}
    step._compiled = function = Mock(return_value=[])
    step.take([x])
    assert {tensor.device for tensor in function.call_args.args} == {META}


def test_batches_are_gathered_on_the_device() -> None:
    step = Mock()
    step.take_several.return_value = None  # no loop in C++
    step.take.side_effect = lambda batch, after_scalars: [batch[0].sum()]
    rows = torch.tensor([[0, 2], [1, 1], [4, 0]])
    with FakeTensorMode(allow_non_fake_inputs=True):
        take_steps(step, [torch.zeros(5, 3, device=META)], rows, 3)
    assert [tuple(call.args[0][0].shape) for call in step.take.call_args_list] == [(2, 3)] * 3


class Linear(nn.Module):
    """A model; its guide is built from it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> None: ...


class InitializedLinear(Linear):
    """A model that creates a layer when it is initialized from the data."""

    def initialize(self, x: Tensor) -> None:
        self.devices_at_initialization = devices(self) | {x.device}
        self.later = nn.Linear(2, 2)


def encoder(model: Linear, *batch: Tensor) -> nn.Module:
    return nn.Linear(2, 2)


def devices(program: Any) -> set[torch.device]:
    return {p.device for p in program.parameters()}


def test_programs_built_for_data_are_moved_to_its_device_and_objects_stay() -> None:
    """A class or a builder cannot be moved before its program exists."""
    batch, instance = (torch.zeros(4, 2, device=META),), Linear()
    model = ModelFactory(Linear).make(batch)
    assert devices(model) == devices(GuideFactory(encoder).make(model, batch)) == {META}
    assert devices(ModelFactory(instance).make(batch)) == {torch.device("cpu")}
    assert devices(ModelFactory(Linear).make((torch.zeros(4, 2),))) == {torch.device("cpu")}
    initialized = ModelFactory(InitializedLinear).make(batch)
    assert isinstance(initialized, InitializedLinear)
    assert initialized.devices_at_initialization == devices(initialized) == {META}


def test_objective_with_parameters_is_moved_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of a baseline, before and after it is sized by the data."""
    x = torch.randn(6, 2)
    moved = Mock(side_effect=move_to_batch_device)
    monkeypatch.setattr("ppl_lvm.training.preparation.move_to_batch_device", moved)
    pair, _ = prepare_pair(_model, _guide, "NeuralBaseline()", (x,), load_data(x))
    moved.assert_called_once_with(pair.objective, (x,))
    assert devices(move_to_batch_device(pair.objective, (torch.zeros(4, 2, device=META),))) == {
        META
    }


def _model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Bernoulli(0.5))
        pyro.sample("x", Normal(z[:, None], 1.0).expand(x.shape).to_event(1), obs=x)


def _guide(x: Tensor) -> None:
    weight = pyro.param("weight", torch.zeros(2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Bernoulli(logits=x @ weight))
