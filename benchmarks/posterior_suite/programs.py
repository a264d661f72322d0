"""Posteriors of posteriordb as Pyro programs.

Improper priors are `ImproperUniform`, as in the published models. A posterior's draws are turned
into the parameters that the reference names: `beta[1]`, `sigma`, …

Source of data and models: Magnusson, Bürkner, Vehtari (2024), posteriordb, BSD-3-Clause.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_lvm.benchmarks.posterior_suite.base import (
    Draws,
    Json,
    Posterior,
    flat,
    flat_positive,
    same_names,
    tensor,
)
from ppl_lvm.benchmarks.posterior_suite.differential_equations import (
    lotka_volterra,
    michaelis_menten,
)
from ppl_lvm.benchmarks.posterior_suite.regressions import (
    earnings,
    half_cauchy_sigma,
    kidiq,
    mesquite,
    nes,
)


def blr(data: Json, model: str) -> Posterior:
    def program(X: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([X.shape[1]]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)

    return Posterior(program, (tensor(data["X"]), tensor(data["y"])), same_names)


def kilpisjarvi(data: Json, model: str) -> Posterior:
    def program(x: Tensor, y: Tensor) -> None:
        alpha = pyro.sample("alpha", dist.Normal(data["pmualpha"], data["psalpha"]))
        beta = pyro.sample("beta", dist.Normal(data["pmubeta"], data["psbeta"]))
        sigma = flat_positive("sigma")
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)

    return Posterior(program, (tensor(data["x"]), tensor(data["y"])), same_names)


def autoregression(data: Json, model: str) -> Posterior:
    K, y = data["K"], tensor(data["y"])
    lags = torch.stack([y[K - k - 1 : len(y) - k - 1] for k in range(K)], 1)

    def program(lags: Tensor, y: Tensor) -> None:
        alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([K]).to_event(1))
        sigma = half_cauchy_sigma()
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)

    return Posterior(program, (lags, y[K:]), same_names)


def garch(data: Json, model: str) -> Posterior:
    def program(y: Tensor) -> None:
        mu = flat("mu")
        alpha0 = flat_positive("alpha0")
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        variance = torch.full((), float(data["sigma1"]) ** 2)
        variances = [variance]
        for t in range(1, len(y)):
            variance = alpha0 + shares[0] * (y[t - 1] - mu) ** 2 + shares[1] * variance
            variances.append(variance)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, torch.stack(variances).sqrt()), obs=y)

    def read(draws: Draws) -> dict[str, Tensor]:
        shares = draws["shares"]
        return {
            "mu": draws["mu"],
            "alpha0": draws["alpha0"],
            "alpha1": shares[:, 0],
            "beta1": shares[:, 1],
        }

    return Posterior(program, (tensor(data["y"]),), read)


def eight_schools(data: Json, model: str) -> Posterior:
    def program(y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + tau * z)
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def read(draws: Draws) -> dict[str, Tensor]:
        mu, tau = draws["mu"], draws["tau"]
        theta = mu[:, None] + tau[:, None] * draws["z"]
        return same_names({"mu": mu, "tau": tau, "theta": theta})

    return Posterior(program, (tensor(data["y"]), tensor(data["sigma"])), read)


def gp_poisson(data: Json, model: str) -> Posterior:
    def function(draws: Draws, x: Tensor) -> Tensor:
        rho, alpha = draws["rho"][..., None, None], draws["alpha"][..., None, None]
        square = (x[:, None] - x) ** 2
        K = alpha**2 * (-0.5 * square / rho**2).exp() + 1e-10 * torch.eye(len(x))
        L = torch.linalg.cholesky(K)
        return (L @ draws["f_tilde"][..., None])[..., 0]

    def program(x: Tensor, k: Tensor) -> None:
        rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
        alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
        f_tilde = pyro.sample("f_tilde", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
        f = function({"rho": rho, "alpha": alpha, "f_tilde": f_tilde}, x)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Poisson(f.exp()), obs=k)

    x = tensor(data["x"])

    def read(draws: Draws) -> dict[str, Tensor]:
        f = function(draws, x.to(draws["rho"]))
        return same_names({"rho": draws["rho"], "alpha": draws["alpha"], "f": f})

    return Posterior(program, (x, tensor(data["k"])), read)


def _ordered_pair(name: str) -> tuple[Tensor, Tensor]:
    """Two values 0 < a < b with a flat prior."""
    low, gap = flat_positive(f"{name}_1"), flat_positive(f"{name}_gap")
    return low, low + gap


def _hidden_markov(transition: Tensor, emission: Any, length: int) -> Any:
    """A chain whose first state is free: Pyro's has a transition before the first value."""
    first = torch.zeros_like(transition).unsqueeze(0)
    steps = torch.cat([first, transition.log().expand(length - 1, -1, -1)])
    return dist.DiscreteHMM(torch.zeros(len(transition)), steps, emission, duration=length)


def hmm_example(data: Json, model: str) -> Posterior:
    def program(y: Tensor) -> None:
        rows = [pyro.sample(f"theta{i}", dist.Dirichlet(torch.ones(2))) for i in (1, 2)]
        low, high = _ordered_pair("mu")
        pyro.factor("prior", dist.Normal(3.0, 1.0).log_prob(low))
        pyro.factor("prior_high", dist.Normal(10.0, 1.0).log_prob(high))
        emission = dist.Normal(torch.stack([low, high]), 1.0)
        pyro.sample("y", _hidden_markov(torch.stack(rows), emission, len(y)), obs=y)

    def read(draws: Draws) -> dict[str, Tensor]:
        low = draws["mu_1"]
        mu = {"mu[1]": low, "mu[2]": low + draws["mu_gap"]}
        return mu | same_names({n: draws[n] for n in ("theta1", "theta2")})

    return Posterior(program, (tensor(data["y"]),), read)


def hmm_drive(data: Json, model: str) -> Posterior:
    alpha = tensor(data["alpha"])

    def program(u: Tensor, v: Tensor) -> None:
        rows = [pyro.sample(f"theta{i + 1}", dist.Dirichlet(alpha[i])) for i in (0, 1)]
        rates = {}
        for name in ("phi", "lambda"):
            low, high = _ordered_pair(name)
            pyro.factor(f"{name}_low", dist.Normal(0.0, 1.0).log_prob(low))
            pyro.factor(f"{name}_high", dist.Normal(3.0, 1.0).log_prob(high))
            rates[name] = torch.stack([low, high])
        emission = dist.Exponential(torch.stack([rates["phi"], rates["lambda"]], -1)).to_event(1)
        hmm = _hidden_markov(torch.stack(rows), emission, len(u))
        pyro.sample("uv", hmm, obs=torch.stack([u, v], -1))

    def read(draws: Draws) -> dict[str, Tensor]:
        result = same_names({n: draws[n] for n in ("theta1", "theta2")})
        for name in ("phi", "lambda"):
            low = draws[f"{name}_1"]
            result |= {f"{name}[1]": low, f"{name}[2]": low + draws[f"{name}_gap"]}
        return result

    return Posterior(program, (tensor(data["u"]), tensor(data["v"])), read)


FAMILIES: dict[str, Callable[[Json, str], Posterior]] = {
    "arK": autoregression,
    "bball_drive_event_0": hmm_drive,
    "earnings": earnings,
    "eight_schools": eight_schools,
    "garch": garch,
    "gp_pois_regr": gp_poisson,
    "hmm_example": hmm_example,
    "hudson_lynx_hare": lotka_volterra,
    "kidiq": kidiq,
    "kidiq_with_mom_work": kidiq,
    "kilpisjarvi_mod": kilpisjarvi,
    "mesquite": mesquite,
    "one_comp_mm_elim_abs": michaelis_menten,
    "sblrc": blr,
    **{f"nes{year}": nes for year in (1972, 1976, 1980, 1988, 1992, 2000)},
}


def posterior(name: str, data: Json) -> Posterior:
    """The posterior `DATA-MODEL` with its published data."""
    source, model = name.split("-")
    return FAMILIES[source](data, model)
