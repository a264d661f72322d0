"""Alignment of components before their ranks are asked."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Categorical, Dirichlet, Normal
from torch import Tensor

from ppl_lvm.diagnostics import calibration
from ppl_lvm.diagnostics.calibration import vsbc
from ppl_lvm.diagnostics.exchangeable_labels import align, exchangeable_axes
from ppl_lvm.particles import analyze_for_particles
from ppl_lvm.posterior.simulation import simulate

pytestmark = pytest.mark.filterwarnings("ignore:Particles run one by one")


def mixture(x: Tensor) -> None:
    with pyro.plate("components", 3):
        mean = pyro.sample("mean", Normal(0.0, 20.0))
    weights = pyro.sample("weights", Dirichlet(torch.full((3,), 8.0)))
    with pyro.plate("data", x.shape[-1], dim=-1):
        z = pyro.sample("z", Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", Normal(mean[z], 0.5), obs=x)


def regression(group: Tensor, y: Tensor) -> None:
    with pyro.plate("groups", 3):
        mean = pyro.sample("mean", Normal(0.0, 20.0))
    with pyro.plate("data", len(y), dim=-1):
        pyro.sample("y", Normal(mean[group.long()], 0.5), obs=y)


def _axes(model: Any, guide: Any, *batch: Tensor) -> dict[str, int]:
    with torch.no_grad():
        structure = analyze_for_particles(model, guide, batch, {}, 2)
        values, simulated = simulate(model, *batch)
        latents = {n: v for n, v in values.items() if n in structure.latents}

        def log_joint(some: Any) -> float:
            return float(calibration._log_joint(model, guide, simulated, structure, some).sum())

        return exchangeable_axes(model, simulated, structure, latents, log_joint)


def _guide(*batch: Tensor) -> None:
    with pyro.plate("components", 3):
        pyro.sample("mean", Normal(torch.zeros(3), 1.0))
    pyro.sample("weights", Dirichlet(torch.ones(3)))


def _guide_of_groups(*batch: Tensor) -> None:
    with pyro.plate("groups", 3):
        pyro.sample("mean", Normal(torch.zeros(3), 1.0))


def test_components_are_exchangeable_and_groups_of_the_data_are_not() -> None:
    torch.manual_seed(0)
    assert _axes(mixture, _guide, torch.randn(30)) == {"mean": -1, "weights": -1}
    assert _axes(regression, _guide_of_groups, torch.arange(30) % 3, torch.randn(30)) == {}


def test_align_undoes_a_permutation_of_all_sites() -> None:
    mean, weights = torch.tensor([-9.0, 0.0, 9.0]), torch.tensor([0.2, 0.3, 0.5])
    draws = {"mean": mean + 0.1 * torch.randn(50, 3), "weights": weights.expand(50, 3)}
    order = torch.tensor([2, 0, 1])
    aligned = align({"mean": mean[order], "weights": weights[order]}, draws, {"mean": -1,
                    "weights": -1})  # fmt: skip
    assert torch.equal(aligned["mean"], mean)
    assert torch.equal(aligned["weights"], weights)


def _refit(x: Tensor) -> Any:
    """A guide whose components are in ascending order, whatever the truth's order."""
    ordered = x.sort().values
    cuts = ordered.diff().topk(2).indices.sort().values + 1
    parts = ordered.tensor_split(cuts.tolist())
    mean = torch.stack([p.mean() for p in parts])
    sizes = torch.tensor([float(len(p)) for p in parts])

    def guide(*batch: Tensor) -> None:
        with pyro.plate("components", 3):
            pyro.sample("mean", Normal(mean, 0.5 / sizes.sqrt()))
        pyro.sample("weights", Dirichlet(sizes + 8.0))

    return guide


@pytest.mark.slow
def test_refitted_components_are_calibrated_after_alignment(monkeypatch: Any) -> None:
    def worst_distance() -> float:
        """Mean distance of Q(mean < truth) from 1/2, of the component where it is largest."""
        torch.manual_seed(0)
        result = vsbc(mixture, _refit, torch.randn(60), num_simulations=15, num_draws=49)
        return max(float(abs(p - 0.5).mean()) for n, p in result.probabilities.items() if "m" in n)

    assert worst_distance() < 0.4  # 0.25 if calibrated
    monkeypatch.setattr(calibration, "align", lambda values, *_: values)  # the wrong twin
    assert worst_distance() > 0.4
