"""Linear regressions with flat priors."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_lvm.benchmarks.posterior_suite.base import (
    Json,
    Posterior,
    flat,
    flat_positive,
    same_names,
    tensor,
)


def regression(
    columns: list[Tensor], y: Tensor, sigma: Callable[[], Tensor] = lambda: flat_positive("sigma")
) -> Posterior:
    """y ~ N(X β, σ) with flat β; X begins with a column of ones."""

    def model(X: Tensor, y: Tensor) -> None:
        beta = flat("beta", X.shape[1])
        scale = sigma()
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(X @ beta, scale), obs=y)

    X = torch.stack([torch.ones_like(y), *columns], 1)
    return Posterior(model, (X, y), same_names)


def half_cauchy_sigma() -> Tensor:
    """σ ~ HC(2.5)."""
    value: Tensor = pyro.sample("sigma", dist.HalfCauchy(2.5))
    return value


def standardized(x: Tensor) -> Tensor:
    """(x − mean) / sd with N − 1."""
    return (x - x.mean()) / x.std()


def earnings(data: Json, model: str) -> Posterior:
    earn, height, male = (tensor(data[k]) for k in ("earn", "height", "male"))
    z = standardized(height)
    return {
        "earn_height": lambda: regression([height], earn),
        "logearn_height": lambda: regression([height], earn.log()),
        "log10earn_height": lambda: regression([height], earn.log10()),
        "logearn_height_male": lambda: regression([height, male], earn.log()),
        "logearn_interaction_z": lambda: regression([z, male, z * male], earn.log()),
    }[model]()


def kidiq(data: Json, model: str) -> Posterior:
    score, hs, iq = (tensor(data[k]) for k in ("kid_score", "mom_hs", "mom_iq"))
    half = half_cauchy_sigma
    if model in ("kidscore_interaction_c", "kidscore_interaction_c2"):
        centers = (0.5, 100.0) if model.endswith("2") else (float(hs.mean()), float(iq.mean()))
        a, b = hs - centers[0], iq - centers[1]
        return regression([a, b, a * b], score)
    if model == "kidscore_mom_work":
        work = tensor(data["mom_work"])
        return regression([(work == w).to(score) for w in (2, 3, 4)], score)
    columns = {
        "kidscore_momhs": [hs],
        "kidscore_momiq": [iq],
        "kidscore_interaction": [hs, iq, hs * iq],
    }[model]
    return regression(columns, score, half)


def mesquite(data: Json, model: str) -> Posterior:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    d1, d2, canopy, total, density, group = (tensor(data[k]) for k in names)
    weight = tensor(data["weight"])
    volume, area = (d1 * d2 * canopy).log(), (d1 * d2).log()
    columns = {
        "mesquite": [d1, d2, canopy, total, density, group],
        "logmesquite": [*(v.log() for v in (d1, d2, canopy, total, density)), group],
        "logmesquite_logvolume": [volume],
        "logmesquite_logva": [volume, area, group],
        "logmesquite_logvash": [volume, area, (d1 / d2).log(), total.log(), group],
    }[model]
    return regression(columns, weight if model == "mesquite" else weight.log())


def nes(data: Json, model: str) -> Posterior:
    age = tensor(data["age_discrete"])
    ages = [(age == a).to(age) for a in (2, 3, 4)]
    ideology, race, education, gender, income = (
        tensor(data[k]) for k in ("real_ideo", "race_adj", "educ1", "gender", "income")
    )
    columns = [ideology, race, *ages, education, gender, income]
    return regression(columns, tensor(data["partyid7"]))
