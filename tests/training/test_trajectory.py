"""Trajectories: bounded records, equal after a resume."""

from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm import fit_em
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models import GaussianMixture
from ppl_lvm.runs.directory import load_run
from ppl_lvm.training.trajectory import (
    ENTRIES,
    MOMENTS,
    ParameterRecorder,
    Trajectory,
    from_tensors,
    last_bounds,
    to_tensors,
)
from small_programs import Mean

pytestmark = pytest.mark.usefixtures("no_figures")


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> None:
        pyro.sample("m", Normal(self.loc, 0.2))


def test_parameter_recorder_bounds_and_spreads_its_records() -> None:
    leaves = {"w": torch.zeros(50, 100), "b": torch.zeros(3)}
    recorder = ParameterRecorder(leaves, 1000)
    for step in range(1, 1001):
        leaves["b"].fill_(step)
        recorder.record(step)
    records = recorder.tensors()
    assert records["b"].shape == (MOMENTS, 1)  # its share of the entries
    assert records["b"][:, 0].tolist() == list(range(5, 1001, 5))
    assert sum(t.shape[1] for t in records.values()) <= ENTRIES + len(leaves)
    late = ParameterRecorder(leaves, 1000)
    late.record(130)  # many steps in one call
    late.record(131)
    assert late.tensors()["b"].tolist() == [[1000.0]]


def test_last_bounds_are_means_over_the_last_fifth_of_steps() -> None:
    assert last_bounds(range(1000)).tolist() == list(np.arange(804.5, 1000, 10))
    assert len(last_bounds(range(99))) == 0


def test_from_tensors_restores_trajectories() -> None:
    trajectories = [
        Trajectory({"model/a.b": torch.rand(3, 2)}, torch.rand(20), {"z": torch.rand(4, 2)}),
        Trajectory(),
    ]
    restored = from_tensors(to_tensors(trajectories))
    assert len(restored) == 2
    assert torch.equal(restored[0].iterates["model/a.b"], trajectories[0].iterates["model/a.b"])
    assert torch.equal(restored[0].responsibilities["z"], trajectories[0].responsibilities["z"])
    assert not restored[1].iterates


def test_fit_records_a_trajectory(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 20)
    run = fit(Mean, Guide, x, num_steps=120, directory=tmp_path / "run")
    (trajectory,) = run.trajectories
    assert trajectory.iterates["guide/loc"].shape == (120, 1)
    assert trajectory.iterates["guide/loc"][-1, 0] == run.parameters()["loc"]
    assert len(trajectory.bounds) == 20
    stored = load_run(tmp_path / "run").trajectories[0]
    assert torch.equal(stored.iterates["guide/loc"], trajectory.iterates["guide/loc"])


def test_parameter_recorder_continues_after_a_resume() -> None:
    leaves = {"b": torch.zeros(1)}
    complete, first, second = (ParameterRecorder(leaves, 600) for _ in range(3))
    for step in range(1, 601):
        leaves["b"].fill_(step)
        complete.record(step)
        (first if step <= 100 else second).record(step)
        if step == 100:
            second.load(first.tensors(), 100)
    assert torch.equal(complete.tensors()["b"], second.tensors()["b"])


def test_restarts_of_em_record_their_clusterings() -> None:
    run = fit_em(GaussianMixture, "iris", settings={"components": 3}, restarts=3)
    before = run.parameters()
    assert len(run.trajectories) == 3
    for trajectory in run.trajectories:
        (r,) = trajectory.responsibilities.values()
        assert r.shape == (150, 3)
        assert torch.allclose(r.sum(1), torch.ones(150), atol=1e-5)
    chosen = next(i for i, e in enumerate(run.restarts) if e["chosen"])
    (recorded,) = run.trajectories[chosen].responsibilities.values()
    (encoded,) = run.encode("iris").values()
    assert torch.allclose(recorded, encoded.float(), atol=1e-4)
    assert set(before) == set(run.parameters())
