"""Parameter drift of trends, noise and slow fluctuation."""

from typing import Any

import numpy as np
import pytest
import torch
from diagnostic_cases import DiagnosticCases
from gaussian_pairs import LinearGaussian, prior_guide
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.parameter_drift import layer_weights, parameter_drift
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.trajectory import Trajectory


def _case(slope: float) -> Any:
    draw, t = np.random.default_rng(0), np.arange(200)[:, None]
    pair = ModelGuidePair(LinearGaussian(), prior_guide, Trace_ELBO())
    records = [slope * (s + 1) * t + draw.normal(size=(200, 5)) for s in range(2)]
    trajectories = [Trajectory({"model/a": torch.from_numpy(x)}) for x in records]
    return parameter_drift(pair, trajectories, [-1.0, -1.0])


CASES = {
    "drift": DiagnosticCases(
        good=[lambda: _case(0.0)],
        faulty=[lambda: _case(0.1)],
        never_bad=frozenset(
            {"share of scalar parameters that differ between … restarts of equal bound"}
        ),
    )
}


class Program(PyroModule):
    """A parameter and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(40))
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> None:
        pass


@pytest.fixture
def pair() -> ModelGuidePair:
    pair = ModelGuidePair(Program(), lambda x: None, Trace_ELBO())
    pair.materialize_parameters(torch.zeros(3))
    return pair


def iterates(kind: str, seed: int = 0, correlation: float = 0.95) -> Tensor:
    """(200, 40) records."""
    draw, t = np.random.default_rng(seed), np.arange(200)[:, None]
    noise = draw.normal(size=(200, 40))
    if kind == "fluctuation":
        for i in range(1, 200):
            noise[i] = correlation * noise[i - 1] + (1 - correlation**2) ** 0.5 * noise[i]
    by_kind = {
        "noise": 5 * np.exp(-t / 15) + 0.3 * noise,
        "fluctuation": 5 * np.exp(-t / 15) + 0.3 * noise,
        "arrived": 5 * np.exp(-t / 15) + 0 * noise,
        "trend": 0.02 * t + 0.1 * noise,
        "half": 0.02 * t * (np.arange(40) < 12) + 0.1 * noise,
    }
    return torch.from_numpy(by_kind[kind])


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [("noise", "good"), ("fluctuation", "good"), ("arrived", "good"), ("half", "warning"),
     ("trend", "bad")],
)  # fmt: skip
def test_only_a_trend_is_drift(pair: ModelGuidePair, kind: str, verdict: str) -> None:
    row = parameter_drift(pair, [Trajectory({"model/loc": iterates(kind)})], [0.0]).findings()[0]
    assert row.verdict == verdict
    assert bool(row.remedy) == (verdict != "good")


def test_fluctuation_is_drift_in_at_most_one_of_twenty_runs(pair: ModelGuidePair) -> None:
    alarms = [
        parameter_drift(pair, [Trajectory({"model/loc": iterates("fluctuation", seed)})], [0.0])
        .findings()[0]
        .verdict
        != "good"
        for seed in range(200)
    ]
    assert np.mean(alarms) <= 0.05


def test_weights_of_layers_are_never_bad_and_counted_separately(pair: ModelGuidePair) -> None:
    assert layer_weights(pair) == {"model/layer.weight", "model/layer.bias"}
    moving, still = iterates("trend"), iterates("noise")
    only = parameter_drift(pair, [Trajectory({"model/layer.weight": moving})], [0.0]).findings()[0]
    assert only.verdict == "unknown"
    mixed = Trajectory({"model/layer.weight": moving, "model/loc": still})
    assert parameter_drift(pair, [mixed], [0.0]).findings()[0].verdict == "good"
    mixed = Trajectory({"model/layer.weight": still, "model/loc": moving})
    assert parameter_drift(pair, [mixed], [0.0]).findings()[0].verdict == "bad"


def test_restarts_of_equal_bound_are_compared(pair: ModelGuidePair) -> None:
    def trajectories(*shifts: float) -> list[Trajectory]:
        return [
            Trajectory({"model/loc": iterates("noise", s) + shift})
            for s, shift in enumerate(shifts)
        ]

    def row(result: Any) -> Any:
        return result.findings()[1]

    assert row(parameter_drift(pair, trajectories(0, 0, 0), [-1.0, -1.01, -1.02])).verdict == "good"
    other = row(parameter_drift(pair, trajectories(0, 4, 0), [-1.0, -1.01, -1.02]))
    assert other.verdict == "unknown"
    assert other.value == 1.0
    # A restart of a lower bound is not compared.
    assert len(parameter_drift(pair, trajectories(0, 4), [-1.0, -2.0]).findings()) == 1


def test_parameter_drift_rejects_too_few_records(pair: ModelGuidePair) -> None:
    with pytest.raises(CannotSayError, match="No iterates"):
        parameter_drift(pair, [Trajectory()], [0.0])
    with pytest.raises(CannotSayError, match="60 records"):
        parameter_drift(pair, [Trajectory({"model/loc": iterates("noise")[:60]})], [0.0])
