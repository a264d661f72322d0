"""What a step makes, it makes where its data are.

No GPU is needed to ask: tensors without numbers on the device "meta", under torch's fake tensor
mode, refuse to meet those of the CPU as a GPU's would.
"""

from typing import Any
from unittest.mock import Mock

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.backend.compiled_step import CompiledStep
from ppl_lvm.compiler.backend.multi_step import take_steps
from ppl_lvm.compiler.graph.ir import Recording
from ppl_lvm.compiler.optim.adapters import TorchOptimizerAdapter
from ppl_lvm.compiler.optim.flat import FlatOptimizer
from ppl_lvm.data import load_data
from ppl_lvm.programs.sources import GuideFactory, ModelFactory, move_to_batch_device
from ppl_lvm.training.preparation import prepare_pair

ELSEWHERE = torch.device("meta")


class Line(nn.Module):
    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return (w * x).sum(), x.sum(0)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_compiled_step_takes_the_optimizers_numbers_there(optimizer: Any) -> None:
    """A kernel of a device cannot read what lies on the CPU."""
    w, x = nn.Parameter(torch.zeros(3, device=ELSEWHERE)), torch.zeros(4, 3, device=ELSEWHERE)
    recording = Recording(
        module=fx.symbolic_trace(Line()),
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
    made = [tensor for value in values for tensor in pytree.tree_leaves(value)]
    assert {tensor.device for tensor in made if tensor is not None} == {ELSEWHERE}
    step._compiled = machine = Mock(return_value=[])
    step.take([x])
    assert {tensor.device for tensor in machine.call_args.args} == {ELSEWHERE}


def test_batches_are_gathered_there() -> None:
    step = Mock()
    step.take.side_effect = lambda batch, between: [batch[0].sum()]
    rows = torch.tensor([[0, 2], [1, 1], [4, 0]])
    with FakeTensorMode(allow_non_fake_inputs=True):
        take_steps(step, [torch.zeros(5, 3, device=ELSEWHERE)], rows, 3)
    assert [tuple(call.args[0][0].shape) for call in step.take.call_args_list] == [(2, 3)] * 3


class Made(nn.Module):
    """A model; its guide is made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> None: ...


class Started(Made):
    """A start from the data meets the model beside them; what it makes is put there, too."""

    def initialize(self, x: Tensor) -> None:
        self.met = devices(self) | {x.device}
        self.later = nn.Linear(2, 2)


def encoder(model: Made, *batch: Tensor) -> nn.Module:
    return nn.Linear(2, 2)


def devices(program: Any) -> set[torch.device]:
    return {p.device for p in program.parameters()}


def test_programs_that_are_made_for_data_are_put_there_and_objects_stay() -> None:
    """As a class and a builder they could not be put there before."""
    batch, own = (torch.zeros(4, 2, device=ELSEWHERE),), Made()
    made = ModelFactory(Made).make(batch)
    assert devices(made) == devices(GuideFactory(encoder).make(made, batch)) == {ELSEWHERE}
    assert devices(ModelFactory(own).make(batch)) == {torch.device("cpu")}
    assert devices(ModelFactory(Made).make((torch.zeros(4, 2),))) == {torch.device("cpu")}
    started = ModelFactory(Started).make(batch)
    assert isinstance(started, Started)
    assert started.met == devices(started) == {ELSEWHERE}


def test_an_objective_with_parameters_is_put_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline's network, before and after it has taken its size from the data."""
    x = torch.randn(6, 2)
    moved = Mock(side_effect=move_to_batch_device)
    monkeypatch.setattr("ppl_lvm.training.preparation.beside", moved)
    pair, _ = prepare_pair(_model, _guide, "NeuralBaseline()", (x,), load_data(x))
    moved.assert_called_once_with(pair.objective, (x,))
    assert devices(
        move_to_batch_device(pair.objective, (torch.zeros(4, 2, device=ELSEWHERE),))
    ) == {ELSEWHERE}


def _model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Bernoulli(0.5))
        pyro.sample("x", Normal(z[:, None], 1.0).expand(x.shape).to_event(1), obs=x)


def _guide(x: Tensor) -> None:
    weight = pyro.param("weight", torch.zeros(2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Bernoulli(logits=x @ weight))
