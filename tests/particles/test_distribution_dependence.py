"""Dependence of every density: on its own row alone."""

import inspect
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from torch import Tensor, eye, ones, zeros

from ppl_lvm.particles.dependence import FollowDependence, row_labels

B = 4
Build = Callable[[Tensor], Any]


def columns(t: Tensor, size: int = 3) -> Tensor:
    return t.unsqueeze(-1) + 0.1 * torch.arange(float(size))


def matrix(t: Tensor, size: int = 2) -> Tensor:
    return torch.diag_embed(columns(t, size).exp()) + 0.1


def normal(size: int) -> Any:
    return dist.MultivariateNormal(zeros(size), eye(size))


def start(t: Tensor) -> Any:
    return dist.MultivariateNormal(columns(t, 2), matrix(t))


def flow(transform: Callable[[], Any]) -> Build:
    def build(t: Tensor) -> Any:
        torch.manual_seed(3)
        base = dist.Normal(columns(t), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [transform()])

    return build


def conditional(transform: Callable[[], Any]) -> Build:
    def build(t: Tensor) -> Any:
        torch.manual_seed(3)
        base = dist.Normal(zeros(B, 3), 1.0).to_event(1)
        return dist.ConditionalTransformedDistribution(base, [transform()]).condition(columns(t))

    return build


def bivariate(t: Tensor) -> Any:
    s = t.exp()
    return dist.SineBivariateVonMises(t, t, s, s, correlation=0.1 * s)


def stable(family: Any) -> Build:
    return lambda t: family(1.5 + 0.1 * t, 0.1 * t, t.exp(), t)


HALF = torch.tensor(0.5)
TIMES = torch.tensor([0.0, 1.0, 2.0])
CONCENTRATIONS = ("Beta", "FisherSnedecor", "Gamma", "InverseGamma", "Kumaraswamy", "Pareto")
LOCATIONS = ("Cauchy", "Gumbel", "Laplace", "LogNormal", "Logistic", "NanMaskedNormal", "Normal")
LOCATIONS += ("SoftLaplace", "VonMises")
SCALES = ("Chi2", "Exponential", "HalfCauchy", "HalfNormal", "Poisson")
LOGITS = ("Bernoulli", "ContinuousBernoulli", "Geometric")
CLASSES = ("Categorical", "OneHotCategorical", "OneHotCategoricalStraightThrough")


def _simple(name: str) -> Build:
    family = getattr(dist, name)
    if name in CONCENTRATIONS or name in ("GammaPoisson", "Weibull"):
        return lambda t: family(t.exp(), t.exp())
    if name in LOCATIONS:
        return lambda t: family(t, t.exp())
    if name in SCALES:
        return lambda t: family(t.exp())
    return lambda t: family(logits=columns(t) if name in CLASSES else t)


SIMPLE = (*CONCENTRATIONS, "GammaPoisson", "Weibull", *LOCATIONS, *SCALES, *LOGITS, *CLASSES)
BUILDS: dict[str, Build] = {name: _simple(name) for name in SIMPLE} | {
    "AffineBeta": lambda t: dist.AffineBeta(t.exp(), t.exp() + 1, t, t.exp()),
    "AsymmetricLaplace": lambda t: dist.AsymmetricLaplace(t, t.exp(), t.exp()),
    "BetaBinomial": lambda t: dist.BetaBinomial(t.exp(), t.exp(), 10),
    "Binomial": lambda t: dist.Binomial(10, logits=t),
    "CoalescentTimes": lambda t: dist.CoalescentTimes(TIMES, t.exp()),
    "CoalescentTimesWithRate": lambda t: dist.CoalescentTimesWithRate(TIMES, columns(t, 5).exp()),
    "Delta": lambda t: dist.Delta(t, log_density=t),
    "Dirichlet": lambda t: dist.Dirichlet(columns(t).exp()),
    "DirichletMultinomial": lambda t: dist.DirichletMultinomial(columns(t).exp(), 10),
    "DiscreteHMM": lambda t: dist.DiscreteHMM(
        columns(t, 2),
        matrix(t).unsqueeze(-3),
        dist.Normal(columns(t, 2).unsqueeze(-2), 1.0),
        duration=5,
    ),
    "Empirical": lambda t: dist.Empirical(columns(t), columns(t)),
    "ExtendedBetaBinomial": lambda t: dist.ExtendedBetaBinomial(t.exp(), t.exp(), 10),
    "ExtendedBinomial": lambda t: dist.ExtendedBinomial(10, logits=t),
    "FoldedDistribution": lambda t: dist.FoldedDistribution(dist.Normal(t, 1.0)),
    "GammaGaussianHMM": lambda t: dist.GammaGaussianHMM(
        dist.Gamma(t.exp(), t.exp()), start(t), eye(2), normal(2), eye(2), normal(2), duration=3
    ),
    "GaussianHMM": lambda t: dist.GaussianHMM(
        start(t), matrix(t).unsqueeze(-3), normal(2), eye(2), normal(2), duration=3
    ),
    "GaussianMRF": lambda t: dist.GaussianMRF(
        start(t), normal(4).expand([B, 3]), normal(4).expand([B, 3])
    ),
    "GeneralizedPareto": lambda t: dist.GeneralizedPareto(t, t.exp(), 0.1 * t),
    "IndependentHMM": lambda t: dist.IndependentHMM(
        dist.GaussianHMM(
            dist.MultivariateNormal(columns(columns(t, 2), 1), eye(1)),
            eye(1),
            normal(1),
            eye(1),
            normal(1),
            duration=3,
        )
    ),
    "LKJ": lambda t: dist.LKJ(3, t.exp()),
    "LKJCholesky": lambda t: dist.LKJCholesky(3, t.exp()),
    "LogNormalNegativeBinomial": lambda t: dist.LogNormalNegativeBinomial(t.exp(), t, t.exp()),
    "LogisticNormal": lambda t: dist.LogisticNormal(columns(t), columns(t).exp()),
    "LowRankMultivariateNormal": lambda t: dist.LowRankMultivariateNormal(
        columns(t), columns(t)[..., None], columns(t).exp()
    ),
    "MaskedDistribution": lambda t: dist.Normal(t, 1.0).mask(t > -1),
    "MaskedMixture": lambda t: dist.MaskedMixture(
        torch.tensor([True, False, True, False]), dist.Normal(t, 1.0), dist.Normal(t + 1, 2.0)
    ),
    "MixtureOfDiagNormals": lambda t: dist.MixtureOfDiagNormals(
        columns(columns(t), 2), columns(columns(t), 2).exp(), columns(t)
    ),
    "MixtureOfDiagNormalsSharedCovariance": lambda t: dist.MixtureOfDiagNormalsSharedCovariance(
        columns(columns(t), 2), columns(t, 2).exp(), columns(t)
    ),
    "MixtureSameFamily": lambda t: dist.MixtureSameFamily(
        dist.Categorical(logits=columns(t, 2)), bivariate(columns(t, 2))
    ),
    "Multinomial": lambda t: dist.Multinomial(10, logits=columns(t)),
    "MultivariateNormal": start,
    "MultivariateStudentT": lambda t: dist.MultivariateStudentT(
        t.exp(), columns(t, 2), torch.linalg.cholesky(matrix(t))
    ),
    "NanMaskedMultivariateNormal": lambda t: dist.NanMaskedMultivariateNormal(
        columns(t, 2), matrix(t)
    ),
    "NegativeBinomial": lambda t: dist.NegativeBinomial(t.exp(), logits=t),
    "OrderedLogistic": lambda t: dist.OrderedLogistic(t, columns(t)),
    "ProjectedNormal": lambda t: dist.ProjectedNormal(columns(t)),
    "Rejector": lambda t: dist.Rejector(dist.Normal(t, 1.0), lambda v: 0 * v, zeros(B)),
    "RelaxedBernoulli": lambda t: dist.RelaxedBernoulli(HALF, logits=t),
    "RelaxedBernoulliStraightThrough": lambda t: dist.RelaxedBernoulliStraightThrough(
        HALF, logits=t
    ),
    "RelaxedOneHotCategorical": lambda t: dist.RelaxedOneHotCategorical(HALF, logits=columns(t)),
    "RelaxedOneHotCategoricalStraightThrough": (
        lambda t: dist.RelaxedOneHotCategoricalStraightThrough(HALF, logits=columns(t))
    ),
    "SineBivariateVonMises": bivariate,
    "SineSkewed": lambda t: dist.SineSkewed(
        dist.VonMises(columns(t, 2), columns(t, 2).exp()).to_event(1), 0.1 * columns(t, 2)
    ),
    "SkewLogistic": lambda t: dist.SkewLogistic(t, t.exp(), t.exp()),
    "SoftAsymmetricLaplace": lambda t: dist.SoftAsymmetricLaplace(t, t.exp(), t.exp(), t.exp()),
    "Stable": stable(dist.Stable),
    "StableWithLogProb": stable(dist.StableWithLogProb),
    "StudentT": lambda t: dist.StudentT(t.exp(), t, t.exp()),
    "TransformedDistribution": lambda t: dist.TransformedDistribution(
        dist.Normal(t, 1.0), [T.AffineTransform(t, t.exp()), T.SigmoidTransform()]
    ),
    "Uniform": lambda t: dist.Uniform(t, t + 1.0),
    "VonMises3D": lambda t: dist.VonMises3D(columns(t)),
    "Wishart": lambda t: dist.Wishart(t.exp() + 4, matrix(t)),
    "ZeroInflatedDistribution": lambda t: dist.ZeroInflatedDistribution(
        dist.Poisson(t.exp()), gate_logits=t
    ),
    "ZeroInflatedNegativeBinomial": lambda t: dist.ZeroInflatedNegativeBinomial(
        t.exp(), logits=t, gate_logits=t
    ),
    "ZeroInflatedPoisson": lambda t: dist.ZeroInflatedPoisson(t.exp(), gate_logits=t),
    "flow of couplings": flow(lambda: T.affine_coupling(3)),
    "flow of splines": flow(lambda: T.spline(3)),
    "flow of quadratic splines": flow(lambda: T.spline(3, order="quadratic")),
    "flow of couplings of splines": flow(lambda: T.spline_coupling(3)),
    "flow of discrete cosines": flow(T.DiscreteCosineTransform),
    "conditional flow": conditional(lambda: T.conditional_affine_autoregressive(3, 3)),
    "conditional flow of splines": conditional(lambda: T.conditional_spline(3, 3)),
}
ONE_ROW = {  # without a batch, or without a density of one
    *("AVFMultivariateNormal", "GaussianScaleMixture", "GroupedNormalNormal", "ImproperUniform"),
    *("LinearHMM", "OMTMultivariateNormal", "OneOneMatching", "OneTwoMatching", "SpanningTree"),
    *("TruncatedPolyaGamma", "Unit"),
}
BASES = {
    "Distribution",
    "Independent",
    "ExpandedDistribution",
    "ExponentialFamily",
    "TorchDistribution",
}


def test_every_family_of_pyro_is_listed() -> None:
    families = {name for name in dist.__all__ if inspect.isclass(getattr(dist, name))}
    families = {n for n in families if issubclass(getattr(dist, n), dist.Distribution)}
    aliases = {"LKJCorrCholesky"}
    assert families - set(BUILDS) - ONE_ROW - BASES - aliases == set()


def labels_of_density(build: Build, t: Tensor, value: Tensor, labels: tuple[Any, Any]) -> list[int]:
    """Labels of the rows of a density whose parameters and value have these."""
    t, value = t.clone(), value.clone()
    with FollowDependence() as dependence:
        for tensor, each in zip((t, value), labels, strict=True):
            dependence.label(tensor, each)
        rows = dependence.labels(build(t).log_prob(value))
    assert not dependence.is_unknown
    return [0] * B if rows is None else rows.tolist()


@pytest.mark.filterwarnings("ignore:Singular sample")
@pytest.mark.parametrize("name", BUILDS)
def test_a_density_depends_on_its_own_row(name: str) -> None:
    t, none = torch.linspace(-0.3, 0.4, B), zeros(())
    build = BUILDS[name]
    with torch.no_grad(), pyro.validation_enabled(False):
        fn = build(t)
        try:
            value = fn.sample()
        except NotImplementedError:
            value = ones(fn.shape())
        rows = row_labels(B, -1)
        assert labels_of_density(build, t, value, (rows, none)) == rows.tolist()
        value_rows = row_labels(B, -1 - fn.event_dim)
        assert labels_of_density(build, t, value, (none, value_rows)) == rows.tolist()
