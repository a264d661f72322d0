"""Tables of results."""

import pytest
import torch

from ppl_lvm import fit
from ppl_lvm.cli.results import print_results
from ppl_lvm.models import VAE, BayesianGaussianMixture, GaussianMixture


def test_results_table_names_the_weight_of_a_tempered_bound(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With half of the KL term the bound lies above log p(x)."""
    x = torch.bernoulli(torch.full((20, 4), 0.5))
    cases = ((0.5, "no bound on log p(x)"), (2.0, "KL term times 2"), (1.0, "rows)"))
    for weight, text in cases:
        settings = {"latent": 1}
        run = fit(VAE, None, x, settings=settings, num_steps=2, kl_weight=weight, engine="eager")
        print_results(run)
        words = " ".join(capsys.readouterr().out.split())
        assert text in words
        assert ("KL term" in words) is (weight != 1)


@pytest.mark.slow
def test_results_table_separates_rows_that_join_the_training_rows_from_rows_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With global latents the bound and the evidence of held-out rows are of different things."""
    x = torch.randn(40, 2)
    tables = {}
    for model in (BayesianGaussianMixture, GaussianMixture):
        settings = {"components": 2}
        run = fit(model, None, x, settings=settings, validation=0.25, num_steps=2, engine="eager")
        print_results(run)
        tables[model] = " ".join(capsys.readouterr().out.split())
    shared = "(the KL of global latents shared with the training rows)"
    assert shared in tables[BayesianGaussianMixture]
    of = "(held-out rows, log p(new rows | training rows), "
    assert of in tables[BayesianGaussianMixture]
    assert "global" not in tables[GaussianMixture]
    assert "(held-out rows, " in tables[GaussianMixture]
