"""The programs of `speed.py` in NumPyro.

A call is one jitted update, or many under `lax.scan`. Idiomatic NumPyro without funsor: mixtures as
`MixtureSameFamily`, the hidden Markov model by a forward recursion under `lax.scan`. Adam, the same
sizes, float32.
NumPyro is the extra `bench`: `pip install "ppl_lvm[bench]"`.
"""

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

Steps = tuple[Callable[[], object], Callable[[], object]]

WITHOUT = "NumPyro is not installed. For its columns: pip install 'ppl_lvm[bench]'."


def installed() -> bool:
    """True if the extra is installed."""
    return find_spec("numpyro") is not None and find_spec("jax") is not None


def steps(name: str, batch: tuple[Tensor, ...], count: int, seed: int) -> Steps:
    """Functions for one update and for `count` updates of the program `name`."""
    import jax
    import numpyro
    from jax import lax

    arrays = tuple(jax.numpy.asarray(tensor.numpy()) for tensor in batch)
    torch.manual_seed(seed)
    model, guide, loss = PROGRAMS[name](*arrays)
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(1e-3), loss)
    state = svi.init(jax.random.PRNGKey(seed), *arrays)
    update = jax.jit(svi.update)

    @jax.jit
    def many(state: Any, *arrays: Any) -> Any:
        return lax.scan(lambda s, _: svi.update(s, *arrays), state, None, length=count)

    states = {"one": state, "many": state}

    def one_step() -> float:
        states["one"], loss = update(states["one"], *arrays)
        return float(loss)

    def many_steps() -> list[float]:
        states["many"], losses = many(states["many"], *arrays)
        values: list[float] = losses.tolist()
        return values

    return one_step, many_steps


def _linear(name: str, inside: int, outside: int) -> Callable[[Any], Any]:
    """A layer initialized as `nn.Linear`."""
    import jax.numpy as jnp
    import numpyro

    layer = torch.nn.Linear(inside, outside)
    w = numpyro.param(f"{name}.weight", jnp.asarray(layer.weight.detach().numpy().T))
    b = numpyro.param(f"{name}.bias", jnp.asarray(layer.bias.detach().numpy()))
    return lambda x: x @ w + b


def _encoder(x: Any) -> None:
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist

    with numpyro.plate("data", len(x)):
        h = jax.nn.relu(_linear("e1", 64, 128)(x))
        scale = jnp.exp(_linear("log_scale", 128, 8)(h))
        numpyro.sample("z", dist.Normal(_linear("mean", 128, 8)(h), scale).to_event(1))


def _decode(z: Any, x: Any) -> None:
    import jax
    import numpyro
    from numpyro import distributions as dist

    logits = _linear("logits", 128, 64)(jax.nn.relu(_linear("d1", 8, 128)(z)))
    numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def _auto_encoder(particles: int) -> Callable[[Any], Any]:
    def make(x: Any) -> Any:
        import numpyro
        from numpyro import distributions as dist
        from numpyro.infer import RenyiELBO, Trace_ELBO

        def model(x: Any) -> None:
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Normal(0, 1).expand([8]).to_event(1))
                _decode(z, x)

        loss = Trace_ELBO() if particles == 1 else RenyiELBO(alpha=0, num_particles=particles)
        return model, _encoder, loss

    return make


def _mixture(components: int) -> Callable[[Any], Any]:
    def make(x: Any) -> Any:
        import jax.numpy as jnp
        import numpyro
        from numpyro import distributions as dist
        from numpyro.infer import Trace_ELBO

        rows = torch.randperm(len(x))[:components].numpy()
        spread = jnp.linalg.cholesky(jnp.cov(x.T))
        c = dist.constraints

        def model(x: Any) -> None:
            even = jnp.full(components, 1 / components)
            weights = numpyro.param("weights", even, constraint=c.simplex)
            means = numpyro.param("means", x[rows])
            start = jnp.broadcast_to(spread, (components, *spread.shape))
            tril = numpyro.param("tril", start, constraint=c.lower_cholesky)
            parts = dist.MultivariateNormal(means, scale_tril=tril)
            mixture = dist.MixtureSameFamily(dist.Categorical(weights), parts)
            with numpyro.plate("data", len(x)):
                numpyro.sample("x", mixture, obs=x)

        return model, _nothing, Trace_ELBO()

    return make


def _mixture_auto_encoder(components: int) -> Callable[[Any], Any]:
    def make(x: Any) -> Any:
        import jax.numpy as jnp
        import numpyro
        from numpyro import distributions as dist
        from numpyro.infer import Trace_ELBO

        centers = jnp.asarray(torch.randn(components, 8).numpy())

        def model(x: Any) -> None:
            c = dist.constraints
            even = jnp.full(components, 1 / components)
            weights = numpyro.param("weights", even, constraint=c.simplex)
            means = numpyro.param("means", centers)
            scales = numpyro.param("scales", jnp.ones_like(centers), constraint=c.positive)
            parts = dist.Normal(means, scales).to_event(1)
            with numpyro.plate("data", len(x)):
                prior = dist.MixtureSameFamily(dist.Categorical(weights), parts)
                _decode(numpyro.sample("z", prior), x)

        return model, _encoder, Trace_ELBO()

    return make


def _chain(states: int) -> Callable[[Any], Any]:
    def make(y: Any) -> Any:
        import jax
        import jax.numpy as jnp
        import numpyro
        from jax import lax
        from numpyro import distributions as dist
        from numpyro.infer import Trace_ELBO

        def model(y: Any) -> None:
            even = jnp.full((states, states), 1 / states)
            rows = numpyro.param("rows", even, constraint=dist.constraints.simplex)
            means = numpyro.param("means", jnp.linspace(-1, 1, states))
            log_a = jnp.log(rows)
            log_b = -0.5 * (y[..., None] - means) ** 2 - 0.5 * math.log(2 * math.pi)  # (B, T, S)

            def move(alpha: Any, b: Any) -> Any:
                return jax.nn.logsumexp(alpha[:, :, None] + log_a, axis=1) + b, None

            alpha, _ = lax.scan(move, log_a[0] + log_b[:, 0], jnp.swapaxes(log_b, 0, 1)[1:])
            with numpyro.plate("data", len(y)):
                numpyro.factor("y", jax.nn.logsumexp(alpha, axis=-1))

        return model, _nothing, Trace_ELBO()

    return make


def _regression(x: Any, y: Any) -> Any:
    import numpyro
    from numpyro import distributions as dist
    from numpyro.infer import Trace_ELBO
    from numpyro.infer.autoguide import AutoMultivariateNormal

    def model(x: Any, y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
        s = numpyro.sample("s", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Normal(x @ w, s), obs=y)

    return model, AutoMultivariateNormal(model), Trace_ELBO()


def _nothing(*arrays: Any) -> None:
    """A guide without sites."""


PROGRAMS: dict[str, Callable[..., Any]] = {
    "vae 128": _auto_encoder(1),
    "vae 1024": _auto_encoder(1),
    "iwae 50": _auto_encoder(50),
    "mixture 150": _mixture(3),
    "mixture 100000": _mixture(32),
    "gm-vae": _mixture_auto_encoder(10),
    "hmm 50": _chain(8),
    "regression": _regression,
}
