"""Joint posteriors of summed-out sites against exact enumeration."""

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Normal,
    OneHotCategorical,
    Poisson,
)
from torch import Tensor

from ppl_lvm.posterior.enumerated_sites import EnumeratedSites

ENUMERATE = {"enumerate": "parallel"}
DRAWS = 4000
STEP = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
Program = Callable[..., Any]


def nothing(*batch: Any) -> None:
    """A guide that leaves every latent to the sum."""


def two_flags(x: Tensor) -> None:
    """x_n ~ N(a_n + b_n, 0.3): the flags depend on each other given x."""
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", Bernoulli(0.4), infer=ENUMERATE)
        b = pyro.sample("b", Bernoulli(0.5), infer=ENUMERATE)
        pyro.sample("x", Normal(a + b, 0.3), obs=x)


def markov_chain(x: Tensor) -> None:
    """A hidden Markov chain of three steps, x (N, 3)."""
    with pyro.plate("data", len(x), dim=-1):
        s: Any = 0
        for t in pyro.markov(range(x.shape[1])):
            s = pyro.sample(f"s{t}", Categorical(STEP[s]), infer=ENUMERATE)
            pyro.sample(f"x{t}", Normal(s.float(), 1.0), obs=x[:, t])


def second_order_chain(x: Tensor) -> None:
    """Each state depends on the two before it."""
    with pyro.plate("data", len(x), dim=-1):
        before: Any = torch.zeros(len(x)).long()
        s = before
        for t in pyro.markov(range(x.shape[1]), history=2):
            p = 0.1 + 0.3 * s + 0.5 * before
            before, s = s, pyro.sample(f"s{t}", Categorical(pair_of(p)), infer=ENUMERATE)
            pyro.sample(f"x{t}", Normal(s.float(), 1.0), obs=x[:, t])


def pair_of(p: Tensor) -> Tensor:
    return torch.stack([1 - p, p], -1)


def change_point(x: Tensor) -> None:
    """A global site outside of the plate: the row where the mean changes."""
    tau = pyro.sample("tau", Categorical(torch.tensor([0.2, 0.3, 0.5])), infer=ENUMERATE)
    with pyro.plate("data", len(x), dim=-1):
        after = (torch.arange(len(x)) >= tau).float()
        pyro.sample("x", Normal(after, 1.0), obs=x)


def global_and_local(x: Tensor) -> None:
    """A global site and a flag of each row that depends on it."""
    g = pyro.sample("g", Bernoulli(0.3), infer=ENUMERATE)
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", Bernoulli(0.2 + 0.6 * g), infer=ENUMERATE)
        pyro.sample("x", Normal(k + g, 1.0), obs=x)


def nested_plates(x: Tensor) -> None:
    """A class of each row and flags in a plate inside of the rows, x (M, N)."""
    with pyro.plate("data", x.shape[1], dim=-1):
        c = pyro.sample("c", Categorical(torch.tensor([0.5, 0.5])), infer=ENUMERATE)
        with pyro.plate("features", len(x), dim=-2):
            f = pyro.sample("f", Bernoulli(0.2 + 0.6 * c), infer=ENUMERATE)
            pyro.sample("x", Normal(f + c, 1.0), obs=x)


def other_supports(x: Tensor) -> None:
    """A count, a one-hot vector and a site with one state."""
    with pyro.plate("data", len(x), dim=-1):
        n = pyro.sample("n", Binomial(2, 0.4), infer=ENUMERATE)
        v = pyro.sample("v", OneHotCategorical(torch.tensor([0.2, 0.3, 0.5])), infer=ENUMERATE)
        one = pyro.sample("one", Categorical(torch.ones(1)), infer=ENUMERATE)
        mean = n + v @ torch.tensor([0.0, 1.0, 2.0]) + one
        pyro.sample("x", Normal(mean, 1.0), obs=x)


def missing_values(x: Tensor) -> None:
    """The chain with a masked step, whose state is then drawn from its neighbors'."""
    with pyro.plate("data", len(x), dim=-1):
        s: Any = 0
        for t in pyro.markov(range(x.shape[1])):
            s = pyro.sample(f"s{t}", Categorical(STEP[s]), infer=ENUMERATE)
            seen = ~x[:, t].isnan()
            observed = Normal(s.float(), 0.3).mask(seen)
            pyro.sample(f"x{t}", observed, obs=x[:, t].nan_to_num(0.0))


def impossible_states(x: Tensor) -> None:
    """A transition of probability zero."""
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", Categorical(torch.tensor([0.5, 0.5, 0.0])), infer=ENUMERATE)
        step = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
        b = pyro.sample("b", Categorical(step[a]), infer=ENUMERATE)
        pyro.sample("x", Normal(b.float(), 1.0), obs=x)


PROGRAMS: dict[str, tuple[Program, Tensor]] = {
    "two flags": (two_flags, torch.tensor([1.0, 0.2])),
    "one row": (two_flags, torch.tensor([1.0])),
    "chain": (markov_chain, torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.5]])),
    "chain of one row": (markov_chain, torch.tensor([[0.0, 1.0, 2.0]])),
    "second-order chain": (second_order_chain, torch.tensor([[0.0, 1.0, 0.5]])),
    "change point": (change_point, torch.tensor([0.0, 0.5, 1.0])),
    "change point in one row": (change_point, torch.tensor([0.5])),
    "global and local": (global_and_local, torch.tensor([0.5, 1.5])),
    "global and one row": (global_and_local, torch.tensor([0.5])),
    "nested plates": (nested_plates, torch.tensor([[0.5, 1.0], [1.5, 0.0]])),
    "nested plates of one row": (nested_plates, torch.tensor([[0.5], [1.5]])),
    "nested plates of one feature": (nested_plates, torch.tensor([[0.5, 1.5]])),
    "other supports": (other_supports, torch.tensor([2.0, 3.5])),
    "missing values": (missing_values, torch.tensor([[0.0, torch.nan, 1.0]])),
    "impossible states": (impossible_states, torch.tensor([0.3, 0.8])),
}


def exact(program: Program, x: Tensor, values: dict[str, Tensor]) -> dict[tuple[Any, ...], float]:
    """Flattened values of all sites -> posterior probability, by running every combination."""
    sites = EnumeratedSites(program, nothing_but(values), (x,)).sites
    choices = []
    for site in sites.values():
        fn, states = site["fn"], site["fn"].enumerate_support(expand=False)
        states = states.reshape(len(states), *fn.event_shape)
        cells = itertools.product(range(len(states)), repeat=fn.batch_shape.numel())
        shape = (*fn.batch_shape, *fn.event_shape)
        choices.append([states[list(cell)].reshape(shape) for cell in cells])
    log_joint = {}
    for combination in itertools.product(*choices):
        fixed = dict(zip(sites, combination, strict=True)) | values
        trace = poutine.trace(poutine.condition(program, fixed)).get_trace(x)
        log_joint[key(list(combination))] = trace.log_prob_sum()
    p = torch.stack(list(log_joint.values())).softmax(0)
    return dict(zip(log_joint, p.tolist(), strict=True))


def nothing_but(values: dict[str, Tensor]) -> Program:
    """A guide of the sites in `values`."""

    def guide(x: Tensor) -> None:
        for name, value in values.items():
            pyro.sample(name, Normal(0.0, 1.0).expand(value.shape).to_event(value.dim()))

    return guide


def key(values: list[Tensor]) -> tuple[Any, ...]:
    return tuple(torch.cat([v.reshape(-1).double() for v in values]).tolist())


@pytest.mark.parametrize("case", PROGRAMS)
def test_joint_draws_have_the_frequencies_of_the_exact_posterior(case: str) -> None:
    program, x = PROGRAMS[case]
    torch.manual_seed(0)
    p = exact(program, x, {})
    sites = EnumeratedSites(program, nothing, (x,))
    draws = sites.draw({}, DRAWS)
    for name, site in sites.sites.items():
        assert draws[name].dtype == site["value"].dtype
        single = sites.draw({})[name]
        assert single.shape == site["value"].shape
    table = torch.cat([v.reshape(DRAWS, -1).double() for v in draws.values()], 1)
    rows, counts = (t.tolist() for t in table.unique(dim=0, return_counts=True))
    share = {tuple(row): count / DRAWS for row, count in zip(rows, counts, strict=True)}
    assert share.keys() <= p.keys()
    for combination, probability in p.items():
        error = 5 * (probability * (1 - probability) / DRAWS) ** 0.5
        assert share.get(combination, 0.0) == pytest.approx(probability, abs=error + 1e-12)


@pytest.mark.parametrize("case", PROGRAMS)
def test_marginals_and_mode_are_those_of_the_exact_posterior(case: str) -> None:
    program, x = PROGRAMS[case]
    p = exact(program, x, {})
    sites = EnumeratedSites(program, nothing, (x,))
    marginals = sites.marginals({})
    start = 0
    for name, site in sites.sites.items():
        fn = site["fn"]
        states = fn.enumerate_support(expand=False).reshape(-1, fn.event_shape.numel()).double()
        expected = torch.zeros(fn.batch_shape.numel(), len(states))
        stop = start + site["value"].numel()
        for combination, probability in p.items():
            values = torch.tensor(combination[start:stop], dtype=torch.double)
            values = values.reshape(-1, 1, fn.event_shape.numel())
            expected += probability * (values == states).all(-1)
        assert marginals[name].shape == (*fn.batch_shape, len(states))
        assert torch.allclose(marginals[name].reshape(expected.shape), expected, atol=1e-5)
        start = stop
    mode = key(list(sites.most_likely({}).values()))
    assert p[mode] == pytest.approx(max(p.values()), rel=1e-4)


def test_independent_draws_of_the_marginals_fail_the_comparison() -> None:
    """The fault that joint draws replace: a and b drawn each for itself."""
    program, x = PROGRAMS["two flags"]
    torch.manual_seed(0)
    marginals = EnumeratedSites(program, nothing, (x,)).marginals({})
    a, b = (Categorical(marginals[n][0]).sample((DRAWS,)) for n in ("a", "b"))
    joint = exact(program, x, {})
    p = sum(q for values, q in joint.items() if values[0] == 0 == values[2])
    assert abs(float(((a == 0) & (b == 0)).float().mean()) - p) > 0.1


def test_draws_are_conditional_on_each_particle_of_the_other_latents() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", Beta(1.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            k = pyro.sample("k", Bernoulli(w), infer=ENUMERATE)
            pyro.sample("x", Normal(z + k, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", Beta(1.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(0.0, 1.0))

    torch.manual_seed(0)
    x = torch.tensor([0.5, 1.5, -0.5])
    w, z = torch.tensor([[0.0], [1.0], [0.5]]), torch.randn(3, 3)
    sites = EnumeratedSites(model, guide, (x,))
    values = {"w": w.repeat(DRAWS, 1), "z": z.repeat(DRAWS, 1)}
    share = sites.draw(values, 3 * DRAWS)["k"].reshape(DRAWS, 3, 3).mean(0)
    odds = w * (Normal(z + 1, 1.0).log_prob(x) - Normal(z, 1.0).log_prob(x)).exp()
    p = odds / (odds + 1 - w)
    error = 5 * (p * (1 - p)).clamp(min=0).div(DRAWS).sqrt() + 1e-6
    assert ((share - p).abs() <= error).all()


def test_means_sum_out_the_sites_without_a_code() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", Categorical(torch.tensor([0.2, 0.3, 0.5])), infer=ENUMERATE)
            z = pyro.sample("z", Normal(k.float(), 1.0))
            mean = (10 * k + z)[..., None] + torch.arange(2.0)
            pyro.sample("x", Normal(mean, 1.0).to_event(1), obs=x)
            pyro.sample("y", Poisson(z.exp()), obs=x[..., 0].round().abs())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(0.0, 1.0))

    for N in (1, 3):
        z = torch.linspace(-1, 1, N)
        sites = EnumeratedSites(model, guide, (torch.full((N, 2), 25.0),))
        means = sites.means({"z": z}, ["x", "y"], lambda fn: fn.mean)
        prior = torch.tensor([0.2, 0.3, 0.5]).log()
        p = (prior + Normal(torch.arange(3.0), 1.0).log_prob(z[:, None])).softmax(-1)
        expected = (10 * p @ torch.arange(3.0) + z)[:, None] + torch.arange(2.0)
        assert torch.allclose(means["x"], expected, atol=1e-4)
        assert torch.allclose(means["y"], z.exp())
