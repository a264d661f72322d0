"""Invalid constructor arguments and data of every model."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_lvm.models import (
    PPCA,
    VAE,
    BayesianGaussianMixture,
    BernoulliVAE,
    ConditionalVAE,
    Diffusion,
    FactorAnalysis,
    FactorModel,
    GaussianMixture,
    GaussianMixtureVAE,
    HiddenMarkovModel,
    HierarchicalRegression,
    HierarchicalVAE,
    LatentDirichletAllocation,
    LinearStateSpace,
    MixtureOfPPCA,
    NormalizingFlow,
    ProdLDA,
    RandomEffects,
    SemiSupervisedVAE,
)

NAN = torch.nan
X = torch.randn(150, 4, generator=torch.Generator().manual_seed(0))
BITS = (X[:5, :2] > 0).float()
SCHOOLS = torch.tensor([[28.0, 15.0], [8.0, 10.0], [-3.0, 16.0], [7.0, 11.0]])
GROUPS = torch.cat([torch.arange(30).fmod(3)[:, None], X[:30, :2]], 1)  # group, predictor, y
COUNTS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0], [1.0, 1.0, 1.0]])
WHOLE = torch.ones(4, 3, dtype=torch.int64)


def changed(x: Tensor, row: int | None, column: int, value: float) -> Tensor:
    """A copy with another value in one row, or in all rows of a column."""
    x = x.clone()
    x[slice(None) if row is None else row, column] = value
    return x


def _hmm(x: Tensor) -> Any:
    return HiddenMarkovModel(3, 2)(x)


CONSTRUCTORS: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (VAE, {"likelihood": "normal"}, "Unknown likelihood 'normal'. Available: "),
    (VAE, {"likelihood": "categorical"}, "needs categories=C"),
    (VAE, {"categories": 3}, "the other likelihoods take none"),
    (VAE, {"latent": 0}, "latent=0"),
    (BernoulliVAE, {"latent": 0}, "latent=0"),
    (ConditionalVAE, {"latent": 0}, "latent=0"),
    (ConditionalVAE, {"given": 0}, "given=0"),
    (HierarchicalVAE, {"latent": (8,)}, "widths of two or more layers"),
    (HierarchicalVAE, {"latent": (4, 0)}, "an entry 1, 0, that is too small"),
    (GaussianMixtureVAE, {"components": 0}, "components=0 is too small"),
    (GaussianMixtureVAE, {"latent": 0}, "latent=0"),
    (GaussianMixtureVAE, {"likelihood": "normal"}, "Unknown likelihood 'normal'"),
    (SemiSupervisedVAE, {"classes": 1}, r"classes=1, error=0\.001"),
    (GaussianMixture, {"covariance": "fulll"}, "Unknown covariance 'fulll'. Available: "),
    (GaussianMixture, {"components": 0}, "components=0"),
    (GaussianMixture, {"floor": 0.0}, "floor=0.0"),
    (BayesianGaussianMixture, {"covariance": "tied"}, "Unknown covariance 'tied'. Available: "),
    (BayesianGaussianMixture, {"components": 1}, "components=1"),
    (BayesianGaussianMixture, {"concentration": 0.0}, "concentration=0.0"),
    (PPCA, {"latent": 0}, "latent=0 is too small"),
    (FactorAnalysis, {"latent": 0}, "latent=0 is too small"),
    (LinearStateSpace, {"latent": 0}, "latent=0 is too small"),
    (MixtureOfPPCA, {"components": 0}, "components=0"),
    (FactorModel, {"likelihood": "normal"}, r"Unknown likelihood 'normal'\. Available: "),
    (HiddenMarkovModel, {"emission": "normal"}, "Unknown emission 'normal'"),
    (HiddenMarkovModel, {"emission": "categorical"}, "needs categories=C"),
    (HiddenMarkovModel, {"states": 0}, "states=0 is too small"),
    (NormalizingFlow, {"observed": 2, "scalar": "cubic"}, "Unknown scalar map 'cubic'"),
    (NormalizingFlow, {"observed": 1}, "at least 2 columns, got 1"),
    (NormalizingFlow, {"observed": 2, "layers": 1}, "layers >= 2"),
    (Diffusion, {"likelihood": "bernoulli"}, "Unknown likelihood 'bernoulli'"),
    (Diffusion, {"likelihood": "categorical"}, "needs categories=C"),
    (Diffusion, {"steps": 0}, "steps=0 is too small"),
    (LatentDirichletAllocation, {"topics": 1}, "at least two topics"),
    (ProdLDA, {"topics": 1}, "at least two topics"),
]


@pytest.mark.parametrize(("model", "arguments", "message"), CONSTRUCTORS)
def test_model_rejects_invalid_constructor_arguments(
    model: Callable[..., Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model(**arguments)


LABELED = SemiSupervisedVAE(3, 1)
REGRESSION = HierarchicalRegression()
FLOW = NormalizingFlow(2)
EFFECTS = RandomEffects()
BAYESIAN = BayesianGaussianMixture()
CONDITIONAL = ConditionalVAE()
DATA: list[tuple[Callable[..., Any], tuple[Tensor, ...], str]] = [
    (CONDITIONAL.initialize, (X,), r"got one tensor \(150, 4\) and given=None"),
    (ConditionalVAE(given=4).initialize, (X,), "given=4"),
    (CONDITIONAL.initialize, (torch.zeros(3, 2, 2), torch.zeros(3, 1)), "takes rows"),
    (CONDITIONAL.initialize, (BITS, BITS[:, :1] / 2 + 0.25), "Binarize the data"),
    (
        GaussianMixtureVAE(2).initialize,
        (BITS,),
        r"latent=8 codes cannot start .* Use latent=2 or fewer",
    ),
    (
        LABELED.initialize,
        (BITS, torch.tensor([0, 1, 3, 2, -1])),
        "from 0 to 2, or -1 where it is missing; row 2 has 3",
    ),
    (LABELED.initialize, (BITS, torch.tensor([0, 1, 0.5, 2, -1])), r"row 2 has 0\.5"),
    (LABELED.initialize, (BITS, torch.tensor([0, 1, -1, -1, -1])), "No row is labeled 2"),
    (LABELED.initialize, (BITS, torch.zeros(5, 1)), r"got \(5, 1\)\. Pass y\[:, 0\]"),
    (
        GaussianMixture(5).initialize,
        (torch.arange(9).fmod(2).float()[:, None],),
        "5 components .* has 2 in 9 rows. Use components=2",
    ),
    (BAYESIAN.initialize, (changed(X, None, 1, 4.0),), "Column 1 of x is constant"),
    (
        BAYESIAN.initialize,
        (changed(X, 4, 1, NAN),),
        "unlike GaussianMixture.* takes complete rows.*row 4,",
    ),
    (PPCA(4).maximize, (X,), r"latent=4 directions of 4 columns.*Use latent=3"),
    (PPCA(2).maximize, (changed(X, 4, 1, NAN),), "x has missing values"),
    (PPCA(2, observed=3).log_evidence, (X,), r"\(N, 3\), got \(150, 4\).*observed=4"),
    (PPCA(1).initialize, (changed(X[:3], None, 1, NAN),), "Column 1 has no value in 3 rows"),
    (PPCA(2).maximize, (X[:1],), "Use latent=1 or|more rows, or more columns"),
    (PPCA(2).maximize, (X[:3],), "Use latent=1 or|more rows, or more columns"),
    (PPCA(2).maximize, (X[:9, :1],), "Use latent=1 or|more rows, or more columns"),
    (MixtureOfPPCA(2, 4).initialize, (X,), r"latent=4 directions of 4 columns.*Use latent=3"),
    (
        MixtureOfPPCA(2).initialize,
        (X[:, :1],),
        "latent=1 directions of 1 columns.*Use GaussianMixture",
    ),
    (MixtureOfPPCA(2, 1, 3).log_evidence, (X,), r"\(N, 3\), got \(150, 4\)"),
    (FactorAnalysis(2, observed=3).log_evidence, (X,), r"\(N, 3\), got \(150, 4\).*observed=4"),
    (FactorAnalysis(2).initialize, (WHOLE,), "floating-point"),
    (FactorModel(4, 3).log_evidence, (COUNTS,), "Quadrature over 4 factors"),
    (
        partial(FactorModel(1, 3).log_evidence, nodes=101),
        (COUNTS,),
        "Quadrature takes 1 to 100 nodes, got nodes=101",
    ),
    (
        FactorModel(1).initialize,
        (changed(COUNTS, None, 1, NAN),),
        "Column 1 has no value in 3 rows",
    ),
    (_hmm, (torch.randn(4, 5, 3),), r"sequences \(N, T, 2\).*got \(4, 5, 3\)"),
    (_hmm, (torch.ones(4, 5, 2, dtype=torch.long),), "floating-point"),
    (
        HiddenMarkovModel(2, 1, "categorical", 4).initialize,
        (torch.full((3, 2, 1), 7.0),),
        "the data has 7",
    ),
    (
        HiddenMarkovModel(5).initialize,
        (torch.tensor([0.0, 1.0, NAN]).expand(6, 3),),
        r"5 states need .* 12 steps show 2. Use states=2",
    ),
    (LinearStateSpace(2, 3), (torch.randn(2, 4, 5),), r"sequences \(N, T, 3\).*got \(2, 4, 5\)"),
    (LinearStateSpace(2, 3), (torch.ones(2, 4, 3, dtype=torch.long),), "floating-point"),
    (LinearStateSpace(1, 1).initialize, (torch.ones(3, 4, 1),), "steps are the same"),
    (NormalizingFlow().density, (), "number of columns is not known"),
    (FLOW.initialize, (changed(X[:10, :2], None, 1, 4.0),), "Column 1 is the same in all 10 rows"),
    (
        FLOW.initialize,
        (changed(X[:, :2], 3, 0, NAN),),
        "complete rows, but row 3, column 0 of x is missing",
    ),
    (FLOW.initialize, (torch.randn(10, 2, 2),), r"got \(10, 2, 2\). Flatten it: x.flatten\(1\)"),
    (lambda: Diffusion().draw(3), (), "number of columns is not known"),
    (lambda: Diffusion(2).draw(3, eta=2.0), (), "0 <= eta <= 1"),
    (
        Diffusion(likelihood="categorical", categories=2).initialize,
        (torch.tensor([[1.0], [2.0]]),),
        "integers 0 to 1, but row 1, column 0 of x is 2",
    ),
    (Diffusion(2), (torch.zeros(3, 4),), r"takes rows \(N, 2\), got \(3, 4\)"),
    (
        REGRESSION.initialize,
        (changed(GROUPS, 2, 0, 0.5),),
        r"first column must be the group.*row 2 has 0\.5",
    ),
    (
        HierarchicalRegression(groups=2).initialize,
        (GROUPS,),
        r"Row \d+ is of group 2, but the groups are 0 to 1. Build .* groups=3",
    ),
    (
        HierarchicalRegression().initialize,
        (GROUPS + torch.tensor([308.0, 0.0, 0.0]),),
        "The groups are 308 to 310, and 3 of the 311 from 0 on have rows. Number them",
    ),
    (REGRESSION.initialize, (changed(GROUPS, None, 1, 1.0),), "Column 1 of x is constant"),
    (
        HierarchicalRegression(predictors=2).initialize,
        (GROUPS,),
        "takes 4 columns: group, 2 predictors",
    ),
    (REGRESSION.initialize, (GROUPS[:, :1],), r"got 1\. Choose columns\."),
    (
        REGRESSION.initialize,
        (changed(GROUPS, 4, 1, NAN),),
        "complete rows, but row 4, column 1 of x is missing",
    ),
    (EFFECTS.initialize, (changed(SCHOOLS, 3, 1, 0.0),), "Row 3 has standard error 0"),
    (EFFECTS.log_evidence, (changed(SCHOOLS, 3, 1, 0.0),), "Row 3 has standard error 0"),
    (
        EFFECTS.initialize,
        (SCHOOLS[:, :1],),
        "takes two columns, estimate and standard error; got 1",
    ),
    (EFFECTS.initialize, (SCHOOLS[:, 0],), r"rows \(N, 2\), got \(4,\). One column is x.unsqueeze"),
    (
        EFFECTS.initialize,
        (changed(SCHOOLS, 2, 0, NAN),),
        "complete rows, but row 2, column 0 of x is missing",
    ),
]


@pytest.mark.parametrize(("call", "batch", "message"), DATA)
def test_model_rejects_invalid_data(
    call: Callable[..., Any], batch: tuple[Tensor, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        copy.deepcopy(call)(*batch)  # the models of the table stay as they are


@pytest.mark.parametrize("model", [LatentDirichletAllocation, ProdLDA])
@pytest.mark.parametrize(
    ("words", "x", "message"),
    [
        (None, changed(COUNTS, 1, 2, 0.5), r"row 1, column 2 is 0\.5 \(1 such values in all\)"),
        (None, COUNTS * torch.tensor([[1.0], [0.0], [1.0]]), "Document 1 has no word"),
        (5, COUNTS, r"rows \(N, 5\), got \(3, 3\).*build it with words=3"),
    ],
)
def test_topic_models_reject_data_that_are_not_counts(
    model: Any, words: int | None, x: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model(2, words=words).initialize(x)
