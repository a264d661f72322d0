"""Drift of parameters: noise, slow wandering and finished approaches are none; a trend is."""

from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.parameter_drift import drift, layer_weights
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.trajectory import Trajectory


class Program(PyroModule):
    """A parameter of its own and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(40))
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> None:
        pass


@pytest.fixture
def pair() -> ModelGuidePair:
    made = ModelGuidePair(Program(), lambda x: None, Trace_ELBO())
    made.materialize_parameters(torch.zeros(3))
    return made


def iterates(kind: str, seed: int = 0, correlation: float = 0.95) -> Tensor:
    """(200, 40) records."""
    draw, t = np.random.default_rng(seed), np.arange(200)[:, None]
    noise = draw.normal(size=(200, 40))
    if kind == "wandering":
        for i in range(1, 200):
            noise[i] = correlation * noise[i - 1] + (1 - correlation**2) ** 0.5 * noise[i]
    way = {
        "noise": 5 * np.exp(-t / 15) + 0.3 * noise,
        "wandering": 5 * np.exp(-t / 15) + 0.3 * noise,
        "arrived": 5 * np.exp(-t / 15) + 0 * noise,
        "trend": 0.02 * t + 0.1 * noise,
        "half": 0.02 * t * (np.arange(40) < 12) + 0.1 * noise,
    }
    return torch.from_numpy(way[kind])


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [("noise", "good"), ("wandering", "good"), ("arrived", "good"), ("half", "warning"),
     ("trend", "bad")],
)  # fmt: skip
def test_only_a_trend_is_drift(pair: ModelGuidePair, kind: str, verdict: str) -> None:
    found = drift(pair, [Trajectory({"model/loc": iterates(kind)})], [0.0])
    assert found.findings()[0].verdict == verdict
    assert bool(found.findings()[0].remedy) == (verdict != "good")


def test_wandering_is_called_drift_once_in_twenty_at_most(pair: ModelGuidePair) -> None:
    alarms = [
        drift(pair, [Trajectory({"model/loc": iterates("wandering", seed)})], [0.0])
        .findings()[0]
        .verdict
        != "good"
        for seed in range(200)
    ]
    assert np.mean(alarms) <= 0.05


def test_weights_of_layers_raise_no_alarm_and_are_told_apart(pair: ModelGuidePair) -> None:
    assert layer_weights(pair) == {"model/layer.weight", "model/layer.bias"}
    moving, still = iterates("trend"), iterates("noise")
    only = drift(pair, [Trajectory({"model/layer.weight": moving})], [0.0]).findings()[0]
    assert only.verdict == "unknown"
    both = Trajectory({"model/layer.weight": moving, "model/loc": still})
    assert drift(pair, [both], [0.0]).findings()[0].verdict == "good"
    both = Trajectory({"model/layer.weight": still, "model/loc": moving})
    assert drift(pair, [both], [0.0]).findings()[0].verdict == "bad"


def test_restarts_of_one_bound_are_held_beside_each_other(pair: ModelGuidePair) -> None:
    def trails(*shifts: float) -> list[Trajectory]:
        return [
            Trajectory({"model/loc": iterates("noise", s) + shift})
            for s, shift in enumerate(shifts)
        ]

    def row(found: Any) -> Any:
        return found.findings()[1]

    assert row(drift(pair, trails(0, 0, 0), [-1.0, -1.01, -1.02])).verdict == "good"
    other = row(drift(pair, trails(0, 4, 0), [-1.0, -1.01, -1.02]))
    assert other.verdict == "unknown"
    assert other.value == 1.0
    # A start that ended lower is another matter (the spread over restarts).
    assert len(drift(pair, trails(0, 4), [-1.0, -2.0]).findings()) == 1


def test_without_records_it_cannot_say(pair: ModelGuidePair) -> None:
    with pytest.raises(CannotSayError, match="No iterates"):
        drift(pair, [Trajectory()], [0.0])
    with pytest.raises(CannotSayError, match="60 records"):
        drift(pair, [Trajectory({"model/loc": iterates("noise")[:60]})], [0.0])
