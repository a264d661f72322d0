"""Programs in NumPyro, by NUTS, guides and BlackJAX.

In double precision, as the other methods. NumPyro and BlackJAX are the extra `bench`:
`pip install "ppl_lvm[bench]"`.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

WARMUP, DRAWS = 1000, 1000
STEPS = 2000  # of a guide, by Adam(0.01)
PATHS, PATH_DRAWS, RESAMPLED = 4, 1000, 1000
HALF_CAUCHY = ("kidscore_interaction", "kidscore_momhs", "kidscore_momiq")  # priors of σ

Answer = tuple[dict[str, Tensor], int]  # draws of the sites (1000, …), and gradients


def serves(name: str, method: str) -> bool:
    """True if the posterior `DATA-MODEL` has a program here, and the method is installed."""
    package = "blackjax" if "BlackJAX" in method else "numpyro"
    return find_spec(package) is not None and _program(name) is not None


def _program(name: str) -> Callable[..., None] | None:
    source, model = name.split("-")
    if source in ("kidiq", "kidiq_with_mom_work", "earnings", "mesquite") or source[:3] == "nes":
        half_cauchy = model in HALF_CAUCHY
        return lambda X, y: _regression(X, y, half_cauchy)
    return {"arK": _autoregression, "eight_schools": _schools, "sblrc": _blr}.get(source)


def nuts(name: str, batch: tuple[Tensor, ...], seed: int) -> Answer:
    """One chain of NUTS, 1,000 + 1,000; gradients are those after the warm-up."""
    import jax
    from numpyro.infer import MCMC, NUTS

    arrays = _arrays(batch)
    sampler: Any = MCMC(
        NUTS(_program(name)), num_warmup=WARMUP, num_samples=DRAWS, progress_bar=False
    )
    sampler.run(jax.random.PRNGKey(seed), *arrays, extra_fields=("num_steps",))
    return _tensors(sampler.get_samples()), int(sampler.get_extra_fields()["num_steps"].sum())


def multivariate_normal(name: str, batch: tuple[Tensor, ...], seed: int) -> Answer:
    """AutoMultivariateNormal by Adam(0.01), 2,000 steps."""
    import jax
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoMultivariateNormal
    from numpyro.infer.initialization import init_to_uniform
    from numpyro.optim import Adam

    arrays, key = _arrays(batch), jax.random.PRNGKey(seed)
    guide: Any = AutoMultivariateNormal(_program(name), init_loc_fn=init_to_uniform)
    result = SVI(_program(name), guide, Adam(0.01), Trace_ELBO()).run(
        key, STEPS, *arrays, progress_bar=False
    )
    draws = guide.sample_posterior(key, result.params, sample_shape=(DRAWS,))
    return _tensors(draws), STEPS


def pathfinder(name: str, batch: tuple[Tensor, ...], seed: int) -> Answer:
    """BlackJAX's Pathfinder of four paths with its defaults, resampled by weights.

    In place of gradients it counts the iterations of the paths.
    """
    import jax
    from blackjax.vi.multipathfinder import as_top_level_api
    from numpyro.infer.util import initialize_model

    arrays, key = _arrays(batch), jax.random.PRNGKey(seed)
    keys = jax.random.split(key, PATHS)
    model = initialize_model(keys, _program(name), model_args=arrays)
    one = initialize_model(keys[0], _program(name), model_args=arrays)
    method: Any = as_top_level_api(lambda z: -one.potential_fn(z))
    state, info = method.init(key, model.param_info.z, num_samples=PATH_DRAWS)
    draws = jax.vmap(one.postprocess_fn)(method.sample(key, state, RESAMPLED))
    iterations = jax.numpy.isfinite(info.path.elbo).sum()
    return _tensors(draws), int(iterations)


METHODS: dict[str, Callable[[str, tuple[Tensor, ...], int], Answer]] = {
    "NUTS of NumPyro": nuts,
    "AutoMultivariateNormal of NumPyro": multivariate_normal,
    "Pathfinder of BlackJAX": pathfinder,
}


def _arrays(batch: tuple[Tensor, ...]) -> tuple[Any, ...]:
    import jax

    jax.config.update("jax_enable_x64", True)
    return tuple(jax.numpy.asarray(part.numpy()) for part in batch)


def _tensors(draws: Any) -> dict[str, Tensor]:
    import jax

    return {name: torch.tensor(jax.device_get(x)) for name, x in draws.items()}


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
