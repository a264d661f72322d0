"""Some of the programs in NumPyro, sampled by its NUTS.

One chain of 1,000 + 1,000 in double precision, as the other methods. NumPyro is the extra `bench`:
`pip install "ppl_lvm[bench]"`.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

WARMUP, DRAWS = 1000, 1000
HALF_CAUCHY = ("kidscore_interaction", "kidscore_momhs", "kidscore_momiq")  # priors of σ


def serves(name: str) -> bool:
    """True if the posterior `DATA-MODEL` has a program here, and the extra is installed."""
    return find_spec("numpyro") is not None and _program(name) is not None


def _program(name: str) -> Callable[..., None] | None:
    source, model = name.split("-")
    if source in ("kidiq", "kidiq_with_mom_work", "earnings", "mesquite") or source[:3] == "nes":
        half_cauchy = model in HALF_CAUCHY
        return lambda X, y: _regression(X, y, half_cauchy)
    return {"arK": _autoregression, "eight_schools": _schools, "sblrc": _blr}.get(source)


def nuts(name: str, batch: tuple[Tensor, ...], seed: int) -> tuple[dict[str, Tensor], int]:
    """Draws of the sites, site -> (1000, …), and the gradients that they took after the warm-up."""
    import jax
    from numpyro.infer import MCMC, NUTS

    jax.config.update("jax_enable_x64", True)
    sampler: Any = MCMC(
        NUTS(_program(name)), num_warmup=WARMUP, num_samples=DRAWS, progress_bar=False
    )
    arrays = [jax.numpy.asarray(part.numpy()) for part in batch]
    sampler.run(jax.random.PRNGKey(seed), *arrays, extra_fields=("num_steps",))
    draws = {n: torch.tensor(jax.device_get(x)) for n, x in sampler.get_samples().items()}
    return draws, int(sampler.get_extra_fields()["num_steps"].sum())


def _regression(X: Any, y: Any, half_cauchy: bool) -> None:
    import numpyro
    import numpyro.distributions as dist

    real, positive = dist.constraints.real, dist.constraints.positive
    beta = numpyro.sample("beta", dist.ImproperUniform(real, (X.shape[1],), ()).to_event(1))
    flat = dist.ImproperUniform(positive, (), ())
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5) if half_cauchy else flat)
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def _autoregression(lags: Any, y: Any) -> None:
    import numpyro
    import numpyro.distributions as dist

    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([lags.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def _blr(X: Any, y: Any) -> None:
    import numpyro
    import numpyro.distributions as dist

    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def _schools(y: Any, sigma: Any) -> None:
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)
