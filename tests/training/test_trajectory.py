"""What a start leaves behind: records of parameters, bounded, and the same after a resume."""

from pathlib import Path

import numpy as np
import pyro
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


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> None:
        pyro.sample("m", Normal(self.loc, 0.2))


def test_records_are_bounded_and_spread() -> None:
    leaves = {"w": torch.zeros(50, 100), "b": torch.zeros(3)}
    kept = ParameterRecorder(leaves, 1000)
    for step in range(1, 1001):
        leaves["b"].fill_(step)
        kept.record(step)
    found = kept.tensors()
    assert found["b"].shape == (MOMENTS, 1)  # its share of the numbers
    assert found["b"][:, 0].tolist() == list(range(5, 1001, 5))
    assert sum(t.shape[1] for t in found.values()) <= ENTRIES + len(leaves)
    few = ParameterRecorder(leaves, 1000)
    few.record(130)  # many steps in one call
    few.record(131)
    assert few.tensors()["b"].tolist() == [[1000.0]]


def test_last_bounds_are_means_of_the_last_fifth() -> None:
    assert last_bounds(range(1000)).tolist() == list(np.arange(804.5, 1000, 10))
    assert len(last_bounds(range(99))) == 0


def test_packed_and_unpacked() -> None:
    trails = [
        Trajectory({"model/a.b": torch.rand(3, 2)}, torch.rand(20), {"z": torch.rand(4, 2)}),
        Trajectory(),
    ]
    back = from_tensors(to_tensors(trails))
    assert len(back) == 2
    assert torch.equal(back[0].iterates["model/a.b"], trails[0].iterates["model/a.b"])
    assert torch.equal(back[0].responsibilities["z"], trails[0].responsibilities["z"])
    assert not back[1].iterates


def test_a_fit_leaves_a_trail(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 20)
    run = fit(Mean, Guide, x, num_steps=120, directory=tmp_path / "run", progress=False)
    (trail,) = run.trajectories
    assert trail.iterates["guide/loc"].shape == (120, 1)
    assert trail.iterates["guide/loc"][-1, 0] == run.parameters()["loc"]
    assert len(trail.bounds) == 20
    stored = load_run(tmp_path / "run").trajectories[0]
    assert torch.equal(stored.iterates["guide/loc"], trail.iterates["guide/loc"])


def test_records_continue_after_a_resume() -> None:
    leaves = {"b": torch.zeros(1)}
    whole, first, second = (ParameterRecorder(leaves, 600) for _ in range(3))
    for step in range(1, 601):
        leaves["b"].fill_(step)
        whole.record(step)
        (first if step <= 100 else second).record(step)
        if step == 100:
            second.load(first.tensors(), 100)
    assert torch.equal(whole.tensors()["b"], second.tensors()["b"])


def test_restarts_of_em_leave_their_clusterings() -> None:
    run = fit_em(GaussianMixture, "iris", settings={"components": 3}, restarts=3)
    before = run.parameters()
    assert len(run.trajectories) == 3
    for trail in run.trajectories:
        (r,) = trail.responsibilities.values()
        assert r.shape == (150, 3)
        assert torch.allclose(r.sum(1), torch.ones(150), atol=1e-5)
    chosen = next(i for i, e in enumerate(run.restarts) if e["chosen"])
    (kept,) = run.trajectories[chosen].responsibilities.values()
    (now,) = run.encode("iris").values()
    assert torch.allclose(kept, now.float(), atol=1e-4)
    assert set(before) == set(run.parameters())
