"""Semi-supervised VAE against quadrature over its code."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from ppl_lvm.checks import check
from ppl_lvm.data import load_data
from ppl_lvm.diagnostics.calibration import sbc
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import label_free
from ppl_lvm.models.ss_vae import SemiSupervisedVAE
from ppl_lvm.particles import analyze_for_particles, log_weights
from ppl_lvm.posterior.simulation import replicated_data, simulate

BITS = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
LABELS = torch.tensor([0, 1, -1, 2, -1])


def _small() -> SemiSupervisedVAE:
    """Two bits, one code, three classes apart, one label in four wrong."""
    model = SemiSupervisedVAE(3, 1, 2, hidden=(4,), error=0.25)
    model.weights = torch.tensor([0.2, 0.5, 0.3])
    model.means = torch.tensor([[-2.0], [0.5], [3.0]])
    model.scales = torch.tensor([[0.5], [1.0], [0.7]])
    return model


def _log_joint(model: SemiSupervisedVAE, x: Tensor) -> Tensor:
    """log p(x_n, c_n = c) by quadrature over z: (N, C)."""
    z = torch.linspace(-12, 12, 4001)[:, None, None].expand(-1, len(x), 1)
    logits = model.decoder.net(z)
    log_x = (x * logits - torch.nn.functional.softplus(logits)).sum(-1)
    log_z = Normal(model.means[:, 0], model.scales[:, 0]).log_prob(z)
    total = model.weights.log() + log_z + log_x[..., None]
    return (total.logsumexp(0) + math.log(24 / 4000)).detach()


def _log_evidence(model: SemiSupervisedVAE) -> Tensor:
    """log p(x_n, y_n), or log p(x_n) where y_n is missing, by hand: (N,)."""
    read = torch.full((3, 3), 0.25 / 3) + 0.75 * torch.eye(3)  # p(y | c), rows are c
    log_y = read.log().T[LABELS.clamp(min=0)]  # (N, C)
    return (_log_joint(model, BITS) + log_y.where(LABELS[:, None] >= 0, 0.0)).logsumexp(-1)


def test_ss_vae_importance_weights_average_to_the_quadrature_evidence() -> None:
    model = _small()
    guide = label_free(model, BITS, LABELS)
    w = log_weights(model, guide, BITS, LABELS, num_particles=100_000).exp()
    error = w.std(0) / math.sqrt(len(w))
    exact = _log_evidence(model).exp()
    assert ((w.mean(0) - exact).abs() < 5 * error).all()
    # A class that is masked where it is known, as obs_mask does, counts each of its values.
    wrong = torch.where(LABELS >= 0, 3 * exact, exact)
    assert ((w.mean(0) - wrong).abs() > 5 * error).tolist() == (LABELS >= 0).tolist()


def test_ss_vae_sum_over_labels_equals_the_unlabeled_row() -> None:
    model = _small()
    torch.manual_seed(0)
    guide = label_free(model, BITS)
    values = []
    for label in (0, 1, 2, None):
        batch = (BITS,) if label is None else (BITS, torch.full((5,), label))
        torch.manual_seed(2)  # the same codes each time
        values.append(log_weights(model, guide, *batch, num_particles=50))
    torch.testing.assert_close(torch.stack(values[:3]).logsumexp(0), values[3])


@pytest.mark.slow
def test_ss_vae_passes_check_and_its_run_encodes_classes(tmp_path: Path) -> None:
    assert not list(check(_small(), label_free(_small(), BITS, LABELS), BITS, LABELS))
    np.savez(tmp_path / "some.npz", x=BITS.repeat(4, 1).numpy(), y=LABELS.repeat(4).numpy())
    run = fit(
        "models/ss_vae.py:SemiSupervisedVAE",
        "ppl_lvm.guides:label_free",
        str(tmp_path / "some.npz"),
        settings={"classes": 3, "latent": 1, "hidden": (4,)},
        objective="IWAE(num_particles=2)",
        num_steps=2,
        directory=tmp_path / "run",
    )
    assert run.to_arviz((BITS, LABELS), num_samples=2).posterior["c"].shape == (1, 2, 5)
    torch.testing.assert_close(run.encode(BITS)["c"].sum(-1), torch.ones(5))


@pytest.mark.slow
def test_ss_vae_learns_classes_from_a_fifth_of_the_labels() -> None:
    data = load_data("blobs(n=300, components=4, dimensions=6, noise=2.0)")
    x, truth = data.tensors[0].float(), data.labels
    assert truth is not None
    some = torch.where(torch.arange(300) % 5 == 0, truth, -1)
    run = fit(
        SemiSupervisedVAE(4, 3, hidden=(32,), likelihood="gaussian-shared"),
        label_free,
        (x, some),
        num_steps=200,
    )
    right = run.encode((x, torch.full_like(truth, -1)))["c"].argmax(1) == truth
    assert right[some < 0].float().mean() > 0.95


def test_ss_vae_simulated_labels_are_missing_where_the_data_are() -> None:
    model = _small()
    guide = label_free(model, BITS, LABELS)
    values, (x, y) = simulate(model, BITS, LABELS)
    assert ((y < 0) == (LABELS < 0)).all()
    assert torch.equal(y[LABELS >= 0], values["y"][LABELS >= 0])
    assert torch.equal(x, values["x"])
    batch = (BITS.repeat(40, 1), LABELS.repeat(40))
    ranks = sbc(model, guide, *batch, num_simulations=200, num_draws=19)
    assert set(ranks.ranks) == {"z", "log p(x, z)"}
    plan = analyze_for_particles(model, guide, batch, {}, 4)
    for drawn in replicated_data(model, guide, batch, plan, 4, prior=False):
        assert ((drawn["y"] < 0) == (batch[1] < 0)).all()
