"""Density figure: values on its grid and applicability."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models.gmm import GaussianMixture
from ppl_lvm.models.ppca import PPCA
from ppl_lvm.report.figures import density
from ppl_lvm.report.run_figures import figures


def test_density_grid_matches_the_model_and_integrates_to_1() -> None:
    run = fit(GaussianMixture(2), None, torch.randn(200, 2), num_steps=50)
    across, up, values = density.on_grid(run.pair, torch.tensor([[-6.0, -6.0], [6.0, 6.0]]))
    assert np.isclose(values.sum() * (across[1] - across[0]) * (up[1] - up[0]), 1, atol=0.01)
    point = torch.tensor([[across[60], up[70]]], dtype=torch.float32)
    with torch.no_grad():
        exact = run.model.log_likelihood(point).exp()
    assert np.isclose(values[60, 70], float(exact), rtol=1e-3)
    assert not np.isclose(values[70, 60], float(exact), rtol=1e-2)  # the axes are not swapped


def test_density_is_drawn_for_two_columns_without_sampled_latents() -> None:
    def has_density(model: Any, x: Tensor) -> bool:
        run = fit(model, None, x, num_steps=5, engine="eager")
        return "density" in figures(run, load_data(x))

    plane, space = torch.randn(60, 2), torch.randn(60, 3)
    assert has_density(GaussianMixture(2), plane)
    assert not has_density(GaussianMixture(2), space)
    assert not has_density(PPCA(latent=1), plane)
