"""The hand-written mixture: density, and optimum on Iris."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris

from ppl_lvm.benchmarks.handwritten import mixture


def test_handwritten_mixture_log_evidence_agrees_with_scipy() -> None:
    x = torch.randn(7, 3, dtype=torch.float64)
    params = mixture.parameters(x, 2)
    with torch.no_grad():
        params["logits"] += torch.tensor([0.3, -0.5])
        params["lower"][1] *= -0.4
    tril = params["lower"].tril(-1) + torch.diag_embed(params["log_diagonal"].exp())
    covariance = (tril @ tril.mT).detach().numpy()
    means, weights = params["means"].detach().numpy(), params["logits"].softmax(0).tolist()
    exact = sum(
        weight * multivariate_normal(mean, cov).pdf(x.numpy())
        for weight, mean, cov in zip(weights, means, covariance, strict=True)
    )
    np.testing.assert_allclose(mixture.log_evidence(params, x).detach().exp(), exact, rtol=1e-12)
    upper_by_mistake = {**params, "lower": params["lower"].mT}
    assert not np.allclose(mixture.log_evidence(upper_by_mistake, x).detach().exp(), exact)


@pytest.mark.slow
def test_handwritten_mixture_reaches_known_optimum_on_iris() -> None:
    x = torch.tensor(load_iris().data)
    params = mixture.parameters(x, 3)
    with torch.no_grad():
        params["means"][:] = torch.tensor(
            KMeans(3, n_init=5, random_state=0).fit(x).cluster_centers_
        )
        params["lower"] *= 0.3
        params["log_diagonal"] -= 1
    optimizer = torch.optim.Adam(params.values(), lr=0.02)
    bounds = [mixture.step(params, optimizer, x) / len(x) for _ in range(800)]
    assert bounds[0] < -2
    assert bounds[-1] == pytest.approx(-1.2012, abs=0.001)
