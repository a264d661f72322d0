"""Draws of models that were not fitted, against their moments."""

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from torch import Tensor

from ppl_lvm import load_data, models, sample_prior


def regression(x: Tensor, y: Tensor) -> None:
    """y_n ~ N(w x_n, 0.1²), w ~ N(3, 0.5²)."""
    w = pyro.sample("w", Normal(3.0, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", Normal(w * x, 0.1), obs=y)


def test_sample_prior_has_the_moments_of_the_model() -> None:
    x = torch.tensor([1.0, 2.0])
    draws = sample_prior(regression, (x, torch.full((2,), torch.nan)), num_samples=2000)
    assert draws["w"].shape == (2000,)
    assert draws["y"].shape == (2000, 2)
    error = draws["y"].std(0) / 2000**0.5
    assert ((draws["y"].mean(0) - 3 * x).abs() < 5 * error).all()
    exact = torch.tensor([[0.26, 0.5], [0.5, 1.01]])  # 0.25 x xᵀ + 0.01 I
    assert ((draws["y"].mT.cov() - exact).abs() < 5 * exact.max() * (2 / 2000) ** 0.5).all()


def test_sample_prior_repeats_covariates_and_keeps_seeds() -> None:
    x = torch.tensor([1.0, 100.0])
    before = torch.get_rng_state()
    draws = [sample_prior(regression, (x, x), 5, seed=s) for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert draws[0]["y"].shape == (5,)
    assert (draws[0]["y"] > 50).tolist() == [False, True, False, True, False]
    assert torch.equal(draws[0]["y"], draws[1]["y"])
    assert not torch.equal(draws[0]["y"], draws[2]["y"])


@pytest.mark.parametrize(
    "model",
    [models.GaussianMixture(3), models.PPCA(2), models.FactorModel(1), models.VAE(latent=2)],
    ids=lambda m: type(m).__name__,
)
def test_sample_prior_draws_bundled_models_and_leaves_them_as_they_were(model: object) -> None:
    (x,) = type(model).example_batch()  # type: ignore[attr-defined]
    draws = sample_prior(model, x, 7)  # type: ignore[arg-type]
    assert draws["x"].shape == (7, x.shape[1])
    assert not pyro.get_param_store().keys()


def test_sample_prior_draws_enumerated_sites_and_models_without_arguments() -> None:
    def coins(x: Tensor | None = None) -> None:
        with pyro.plate("data", 50):
            z = pyro.sample("z", Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(10 * z, 0.1), obs=x)

    draws = sample_prior(coins)
    assert torch.equal(draws["x"] > 5, draws["z"] == 1)
    assert 0 < draws["z"].sum() < 50


def test_sample_prior_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"takes x, y. Pass data of the rows' shape"):
        sample_prior(regression)
    with pytest.raises(ValueError, match=r"n=0 is too small"):
        sample_prior(regression, (torch.zeros(2), torch.zeros(2)), 0)
    with pytest.raises(ValueError, match=r"PPCA is a class. Pass an instance"):
        sample_prior(models.PPCA, torch.zeros(2, 3))


def test_sample_prior_takes_loaded_rows_and_sizes_no_model() -> None:
    ppca = models.PPCA(1)
    for columns in (4, 6):
        rows = load_data(torch.zeros(3, columns))
        assert sample_prior(ppca, rows)["x"].shape == (3, columns)
