"""Masks and scales around enumerated sites."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Categorical, Normal
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.poutine import mask, scale
from torch import Tensor

import ppl_lvm.estimators as estimators
from ppl_lvm import fit
from ppl_lvm.programs.minibatch import ScaleDataPlate

X = torch.tensor([0.3, -1.2, 2.0])
W = torch.tensor([0.5, 2.0, 0.25])  # weights of rows
S = torch.tensor(0.543)
LOG_K = torch.tensor([0.7, 0.3]).log()

# Without latents in the guide every bound is -loss = log p(x).
BOUNDS = [
    getattr(estimators, name)
    for name in estimators.__all__
    if getattr(estimators, name).requires in ("any", "reparameterized") and name != "NeuralBaseline"
]


def no_latents(x: Tensor) -> None:
    pass


def draw() -> Tensor:
    k: Tensor = pyro.sample("k", Bernoulli(0.3))
    return k


def observe(x: Tensor, k: Tensor) -> None:
    pyro.sample("x", Normal(0.5 + k, 1.0), obs=x)


def in_plate(body: Callable[[Tensor], None]) -> Any:
    @config_enumerate
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            body(x)

    return model


def around_likelihood(context: Callable[[Tensor], Any]) -> Any:
    def body(x: Tensor) -> None:
        k = draw()
        with context(k):
            observe(x, k)

    return in_plate(body)


def around_both(weight: Any) -> Any:
    def body(x: Tensor) -> None:
        with scale(scale=weight):
            observe(x, draw())

    return in_plate(body)


def same_scale_twice(x: Tensor) -> None:
    with scale(scale=W):
        k = draw()
    with scale(scale=W):
        observe(x, k)


def distribution_mask(x: Tensor) -> None:
    k = draw()
    pyro.sample("x", Normal(0.5 + k, 1.0).mask(k.bool()), obs=x)


def global_state(context: Callable[[Tensor], Any]) -> Any:
    @config_enumerate
    def model(x: Tensor) -> None:
        k = draw()
        with pyro.plate("data", len(x), dim=-1), context(k):
            observe(x, k)

    return model


def nested(x: Tensor) -> None:
    with scale(scale=W):
        k = draw()
        with scale(scale=0.5 + k), mask(mask=k.bool() | (x > 0)):
            observe(x, k)


@config_enumerate
def inner_plate(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2), scale(scale=W[:, None]):
        k = draw()
        with pyro.plate("columns", 2, dim=-1), mask(mask=k.bool()):
            pyro.sample("x", Normal(0.5 + k, 1.0), obs=torch.stack([x, -x], -1))


def likelihood(k: int, x: Tensor = X) -> Tensor:
    """log p(x | k) per row."""
    return Normal(0.5 + k, 1.0).log_prob(x)


def summed(log_factor: Callable[[int], Tensor]) -> Tensor:
    """log Σ_k p(k) exp f(k)."""
    return torch.stack([LOG_K[k] + log_factor(k) for k in (0, 1)]).logsumexp(0)


def selected(k: int) -> Tensor:
    return torch.where((X > 0) | (k > 0), (0.5 + k) * likelihood(k), torch.zeros(()))


CASES: dict[str, tuple[Any, Tensor]] = {
    "mask": (around_likelihood(lambda k: mask(mask=k.bool())), summed(lambda k: k * likelihood(k))),
    "scale": (
        around_likelihood(lambda k: scale(scale=0.5 + k)),
        summed(lambda k: (0.5 + k) * likelihood(k)),
    ),
    "mask of the distribution": (in_plate(distribution_mask), summed(lambda k: k * likelihood(k))),
    "tensor": (around_likelihood(lambda k: scale(scale=S)), summed(lambda k: S * likelihood(k))),
    "number": (
        around_likelihood(lambda k: scale(scale=0.543)),
        summed(lambda k: 0.543 * likelihood(k)),
    ),
    "rows": (around_likelihood(lambda k: scale(scale=W)), summed(lambda k: W * likelihood(k))),
    "tensor around both": (around_both(S), S * summed(likelihood)),
    "number around both": (around_both(0.543), S * summed(likelihood)),
    "rows around both": (around_both(W), W * summed(likelihood)),
    "one tensor twice": (in_plate(same_scale_twice), W * summed(likelihood)),
    "nested": (in_plate(nested), W * summed(selected)),
    "mini-batch": (ScaleDataPlate(30)(around_both(W)), 10 * W * summed(likelihood)),
    "inner plate": (
        inner_plate,
        W * summed(lambda k: k * (likelihood(k) + likelihood(k, -X))),
    ),
    "global mask": (
        global_state(lambda k: mask(mask=k.bool())),
        summed(lambda k: k * likelihood(k).sum()),
    ),
    "global scale": (
        global_state(lambda k: scale(scale=W * (1 + k))),
        summed(lambda k: (1 + k) * (W * likelihood(k)).sum()),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_bound_is_exact_under_masks_and_scales_of_enumerated_sites(name: str) -> None:
    model, log_p = CASES[name]
    for cls in BOUNDS:
        estimator = cls()
        log_z = -estimator.loss(model, no_latents, X) * (-1 if estimator.is_upper_bound else 1)
        assert log_z == pytest.approx(float(log_p.sum()), rel=1e-5), cls.__name__


@pytest.mark.parametrize("name", ["mask", "mask of the distribution", "tensor around both"])
def test_pyro_has_the_same_sum_where_it_has_a_rule(name: str) -> None:
    model, log_p = CASES[name]
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, no_latents, X)
    assert -loss == pytest.approx(float(log_p.sum()), rel=1e-5)


def test_mask_applied_after_the_sum_is_another_number() -> None:
    """A wrong twin: the factor masked by the mean of the mask."""
    _, log_p = CASES["mask"]
    assert not torch.allclose(log_p, 0.3 * summed(likelihood), rtol=1e-2)


LENGTHS = torch.tensor([1, 2, 3])


@config_enumerate
def padded_chain(y: Tensor) -> None:
    table = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    with pyro.plate("data", len(y), dim=-1):
        c = torch.zeros((), dtype=torch.long)
        for t in pyro.markov(range(y.shape[1])):
            with mask(mask=t < LENGTHS):
                c = pyro.sample(f"c{t}", Categorical(table[c]))
                with scale(scale=0.5 + c.float()):
                    pyro.sample(f"y{t}", Normal(c.float(), 1.0), obs=y[:, t])


def test_masked_steps_of_a_padded_chain_leave_no_trace() -> None:
    """Steps after the end of a sequence add 0 and not log(states)."""
    y = torch.tensor([[0.3, 9.0, 9.0], [-1.0, 0.5, 9.0], [0.2, 1.4, -0.7]])
    table = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    log_p = 0.0
    for row, length in zip(y, LENGTHS.tolist(), strict=True):
        states = torch.cartesian_prod(*[torch.arange(2)] * length).reshape(-1, length)
        before = torch.cat([torch.zeros(len(states), 1, dtype=torch.long), states[:, :-1]], 1)
        density = (0.5 + states) * Normal(states.float(), 1.0).log_prob(row[:length])
        log_p += float((table[before, states].log() + density).sum(1).logsumexp(0))
    for cls in (estimators.ELBO, estimators.IWAE, estimators.Renyi):
        assert -cls(num_particles=2).loss(padded_chain, no_latents, y) == pytest.approx(log_p)


def two_tensors(x: Tensor) -> None:
    with scale(scale=torch.tensor(0.5)):
        k = draw()
    with scale(scale=torch.tensor(0.5)):
        observe(x, k)


def state_only(x: Tensor) -> None:
    with scale(scale=S):
        k = draw()
    observe(x, k)


def state_and_likelihood(x: Tensor) -> None:
    with scale(scale=0.4):
        k = draw()
    with scale(scale=0.6):
        observe(x, k)


@pytest.mark.parametrize("body", [two_tensors, state_only, state_and_likelihood])
def test_sum_without_a_common_scale_is_rejected(body: Any) -> None:
    with pytest.raises(ValueError, match=r"Sites 'k' and 'x' are summed .* Use one scale"):
        estimators.ELBO().loss(in_plate(body), no_latents, X)


def wide_mask(x: Tensor) -> None:
    k = draw()
    with mask(mask=torch.ones(len(x), 1, dtype=torch.bool)):
        observe(x, k)


def test_mask_wider_than_the_plates_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"'x' has mask shape \(3, 1\).*dimension -2"):
        estimators.IWAE(num_particles=2).loss(in_plate(wide_mask), no_latents, X)


def with_latent(x: Tensor) -> None:
    """The mask of a latent of the guide depends on an enumerated site."""
    k = draw()
    with mask(mask=k.bool()):
        z = pyro.sample("z", Normal(1.0, 2.0))
    observe(x, z)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(0.1, 1.0))


@pytest.mark.parametrize("vectorize", [True, False])
def test_latent_with_an_enumerated_mask_is_part_of_the_sum(vectorize: bool, particles: Any) -> None:
    p = particles(in_plate(with_latent), guide, X, vectorize_particles=vectorize)
    z = p.site_draws["z"].value
    prior = Normal(1.0, 2.0).log_prob(z)
    log_p = torch.stack([LOG_K[k] + k * prior for k in (0, 1)]).logsumexp(0)
    expected = log_p + Normal(0.5 + z, 1.0).log_prob(X) - Normal(0.1, 1.0).log_prob(z)
    assert torch.allclose(p.log_w, expected, atol=1e-5)


@config_enumerate
def with_parameter(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.5))
    with pyro.plate("data", len(x), dim=-1):
        k = draw()
        with mask(mask=k.bool()):
            pyro.sample("x", Normal(loc, 1.0), obs=x)


def test_bound_and_evidence_of_a_fit_agree_under_an_enumerated_mask() -> None:
    run = fit(with_parameter, no_latents, X, num_steps=1, progress=False)
    loc = run.parameters()["loc"]
    expected = float(summed(lambda k: k * Normal(loc, 1.0).log_prob(X)).mean())
    assert run.log_evidence(X).value == pytest.approx(expected, rel=1e-5)
    assert run.results["bound"] == pytest.approx(expected, rel=1e-5)
