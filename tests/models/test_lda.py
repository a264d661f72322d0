"""Topic models against the exact evidence of tiny corpora."""

import math
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor

from ppl_lvm.checks import check
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedDirichlet, AmortizedNormal
from ppl_lvm.models.lda import LatentDirichletAllocation
from ppl_lvm.models.parts.bag_of_words import BagOfWords
from ppl_lvm.models.prod_lda import ProdLDA

TINY = torch.tensor([[2, 1, 0], [0, 1, 2], [3, 0, 0]], dtype=torch.float64)


pytestmark = pytest.mark.usefixtures("doubles")


def test_bag_of_words_equals_a_multinomial_of_each_length() -> None:
    probs = torch.distributions.Dirichlet(torch.ones(3)).sample((3,))
    fn = BagOfWords(TINY.sum(-1), probs)
    exact = [
        scipy.stats.multinomial(int(n.sum()), p.numpy()).logpmf(n.numpy())
        for n, p in zip(TINY, probs, strict=True)
    ]
    np.testing.assert_allclose(fn.log_prob(TINY), exact)
    draws = fn.expand([3]).sample((4000,))
    assert torch.equal(draws.sum(-1), TINY.sum(-1).expand(4000, 3))
    error = (fn.mean * (1 - probs) / 4000).sqrt()
    assert ((draws.mean(0) - fn.mean).abs() < 5 * error).all()


def test_lda_log_evidence_equals_the_integral_over_proportions_and_topics() -> None:
    """Against the mean of p(x | θ, β) over draws of the prior."""
    model = LatentDirichletAllocation(2, alpha=0.7, eta=0.5)
    exact = model.log_evidence(TINY).item()
    draws = 100_000
    theta = torch.distributions.Dirichlet(torch.full((2,), 0.7)).sample((draws, 3))
    beta = torch.distributions.Dirichlet(torch.full((3,), 0.5)).sample((draws, 2))
    p = BagOfWords(TINY.sum(-1), theta @ beta).log_prob(TINY).sum(-1).exp()
    error = (p.std() / p.mean() / draws**0.5).item()
    assert p.mean().log().item() == pytest.approx(exact, abs=5 * error)
    assert error < 0.02


def test_lda_evidence_sums_to_one_over_all_corpora() -> None:
    model = LatentDirichletAllocation(2, alpha=0.7, eta=0.5)
    documents = [torch.tensor(d) for d in product(range(3), repeat=3) if sum(d) == 2]
    total = sum(
        model.log_evidence(torch.stack([a, b]).double()).exp().item()
        for a, b in product(documents, repeat=2)
    )
    assert total == pytest.approx(1.0, abs=1e-10)


@pytest.mark.slow
def test_lda_bound_of_a_dirichlet_guide_is_close_below_the_evidence() -> None:
    settings = {"topics": 2, "alpha": 0.7, "eta": 0.5}
    run = fit(
        LatentDirichletAllocation,
        AmortizedDirichlet,
        TINY,
        settings=settings,
        num_steps=200,
        optimizer="Adam(lr=0.04)",
    )
    model: Any = run.model
    exact = model.log_evidence(TINY).item()
    bound, error = 3 * run.results["bound"], 3 * run.results["bound_monte_carlo_error"]
    assert exact - math.log(2) - 1.0 - 5 * error < bound < exact + 5 * error
    drawn = run.log_evidence(TINY, 4000)
    error = 5 * 3 * drawn.monte_carlo_error
    # q sits at one of the two orders of the topics, which holds half of the posterior.
    assert exact - math.log(2) - error < 3 * drawn.value < exact + error


@pytest.mark.slow
def test_lda_recovers_the_bars() -> None:
    data = load_data("bars(n=300, size=3, length=60)")
    run = fit(
        LatentDirichletAllocation,
        AmortizedDirichlet,
        data,
        settings={"topics": 6, "alpha": 1.0, "eta": 0.3},
        num_steps=500,
        batch_size=100,
        optimizer="Adam(lr=0.03)",
    )
    guide: Any = run.guide
    c = guide.shared.topics_concentration.detach()
    assert _matched(c / c.sum(-1, keepdim=True)) > 0.7  # chance: 0.33


def _matched(topics: Tensor) -> float:
    """Smallest share of a topic's mass on its bar, under the best matching."""
    rows = torch.eye(3).repeat_interleave(3, 1)
    bars = torch.cat([rows, torch.eye(3).repeat(1, 3)])  # (6, 9)
    mass = topics @ bars.mT
    return max(
        min(mass[k, bar].item() for k, bar in enumerate(order)) for order in permutations(range(6))
    )


def test_prod_lda_evidence_estimate_equals_the_integral() -> None:
    run = fit(ProdLDA, AmortizedNormal, TINY, settings={"topics": 2}, num_steps=100)
    model: Any = run.model
    h = torch.linspace(-12, 12, 401)
    grid = torch.cartesian_prod(h, h)
    spread = (1 / (2 * 0.5)) ** 0.5  # (1 - 2/K) / α + 1 / (K α) at K = 2
    with torch.no_grad():
        log_prior = torch.distributions.Normal(0, spread).log_prob(grid).sum(-1)
        log_p = BagOfWords(TINY.sum(-1)[:, None], model.decode(grid)).log_prob(TINY[:, None])
    exact = ((log_p + log_prior).logsumexp(-1) + 2 * (h[1] - h[0]).log()).mean().item()
    drawn = run.log_evidence(TINY, 2000)
    assert drawn.value == pytest.approx(exact, abs=5 * drawn.monte_carlo_error)
    assert run.results["bound"] < exact + 5 * run.results["bound_monte_carlo_error"]


def test_prod_lda_words_are_a_product_of_topics() -> None:
    model = ProdLDA(3, 4)
    model.initialize(torch.poisson(torch.full((5, 4), 3.0)) + 1)
    h = torch.randn(2, 3)
    theta = scipy.special.softmax(h.numpy(), -1)
    B, b = model.B.detach().numpy(), model.b.detach().numpy()
    weight = np.exp(b) * np.prod(np.exp(B * theta[:, None, :]), -1)  # (2, V)
    exact = weight / weight.sum(-1, keepdims=True)
    np.testing.assert_allclose(model.decode(h).detach().numpy(), exact, rtol=1e-12)
    alone = np.exp(B.T + b) / np.exp(B.T + b).sum(-1, keepdims=True)
    np.testing.assert_allclose(model.topic_words().numpy(), alone, rtol=1e-12)


def test_prod_lda_prior_approximates_the_dirichlet() -> None:
    """Of a Dirichlet's variance it has the share 1 - 1/K, being diagonal; here K = 3, α = 2."""
    model = ProdLDA(3, 4, alpha=2.0)
    trace = poutine.trace(model).get_trace(torch.ones(2, 4))
    assert trace.nodes["h"]["fn"].variance[0, 0].item() == pytest.approx(1 / 3 / 2 + 1 / 6)
    h = trace.nodes["h"]["fn"].variance.sqrt()[0, 0] * torch.randn(40000, 3)
    assert h.softmax(-1).var(0).mean().item() == pytest.approx(2 / 3 * 2 / 9 / 7, rel=0.05)


@pytest.mark.parametrize("model", [LatentDirichletAllocation, ProdLDA])
def test_lda_log_prob_rejects_invalid_counts(model: Any) -> None:
    """A multinomial's formula would be finite for 1.5 words."""
    run = fit(model(2), None, TINY, num_steps=2)
    for wrong in (-1.0, 1.5):
        x = TINY.clone()
        x[2, 1] = wrong
        with pytest.raises(
            ValueError, match=rf"'x' observes {wrong:g} at row 2, column 1, outside"
        ):
            run.log_evidence(x, 10)


def test_amortized_dirichlet_passes_check_and_rejects_other_sites() -> None:
    model = LatentDirichletAllocation(2)
    model.initialize(TINY)
    assert check(model, AmortizedDirichlet(model, TINY), TINY).ok
    other = ProdLDA(2, 3)
    with pytest.raises(ValueError, match="serves sites on a simplex, but 'h'"):
        AmortizedDirichlet(other, TINY)
    with pytest.raises(ValueError, match=r"have 2\^\d+ states"):
        model.log_evidence(10 * TINY)
