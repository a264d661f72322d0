"""The density picture: values on its grid, and when it is drawn."""

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


def test_the_grid_holds_the_models_density_and_all_its_mass() -> None:
    run = fit(GaussianMixture(2), None, torch.randn(200, 2), num_steps=50, progress=False)
    across, up, found = density.on_grid(run.pair, torch.tensor([[-6.0, -6.0], [6.0, 6.0]]))
    assert np.isclose(found.sum() * (across[1] - across[0]) * (up[1] - up[0]), 1, atol=0.01)
    point = torch.tensor([[across[60], up[70]]], dtype=torch.float32)
    with torch.no_grad():
        exactly = run.model.log_likelihood(point).exp()
    assert np.isclose(found[60, 70], float(exactly), rtol=1e-3)
    assert not np.isclose(found[70, 60], float(exactly), rtol=1e-2)  # the axes are not swapped


def test_it_is_drawn_for_two_columns_without_sampled_latents() -> None:
    def drawn(model: Any, x: Tensor) -> bool:
        run = fit(model, None, x, num_steps=5, progress=False)
        return "density" in figures(run, load_data(x))

    plane, space = torch.randn(60, 2), torch.randn(60, 3)
    assert drawn(GaussianMixture(2), plane)
    assert not drawn(GaussianMixture(2), space)
    assert not drawn(PPCA(latent=1), plane)
