"""Valid guides, plain and unusual: no error and no warning."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, autoguide, config_enumerate
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.checks import check
from ppl_lvm.guides import (
    AmortizedCategorical,
    AmortizedMultivariateNormal,
    AmortizedNormal,
    GlobalNormal,
    auto_guide,
)
from ppl_lvm.nn import PartialEncoder

Pair = tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]


REAL = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


BITS = (REAL > 0).float()


COUNTS = torch.arange(8.0)


def _normal(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0).expand([len(x)]), obs=x[:, 0])


def _normal_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("w", dist.Normal(loc, scale))


def _auto(model: Callable[..., Any], guide: type, *batch: Tensor) -> Pair:
    return model, guide(model), batch


def _annealed(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        with pyro.poutine.scale(scale=0.3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def _annealed_guide(x: Tensor) -> None:
    net = pyro.module("net", _NET)
    with pyro.plate("data", len(x), dim=-1), pyro.poutine.scale(scale=0.3):
        pyro.sample("z", dist.Normal(net(x).squeeze(-1), 1.0))


_NET = nn.Linear(3, 1)


def _sampled_discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x[:, 0])


def _sampled_discrete_guide(x: Tensor) -> None:
    net = pyro.module("net", _NET)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("k", dist.Bernoulli(logits=net(x).squeeze(-1)))


def _auxiliary_guide(x: Tensor) -> None:
    u = pyro.sample("u", dist.Normal(0.0, 1.0).mask(False), infer={"is_auxiliary": True})
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("w", dist.Normal(loc + u, 1.0))


def _poisson(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Poisson(rate), obs=x)


def _shared_param_model(x: Tensor) -> None:
    """Model and guide share a parameter by its name, on purpose."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(pyro.param("both", torch.tensor(0.0)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def _shared_param_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(pyro.param("both", torch.tensor(0.0)), 1.0))


class _Normed(PyroModule):
    """An encoder with batch normalization: a row's output depends on its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.net(x).squeeze(-1), 1.0))


def _factor_guide(x: Tensor) -> None:
    _normal_guide(x)
    pyro.factor("correction", torch.tensor(0.1), has_rsample=True)


_BASELINE = nn.Linear(3, 1)


def _baseline_guide(x: Tensor) -> None:
    net, baseline = pyro.module("net", _NET), pyro.module("baseline", _BASELINE)
    infer = {"baseline": {"nn_baseline": baseline, "nn_baseline_input": x}}
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("k", dist.Bernoulli(logits=net(x).squeeze(-1)), infer=infer)


class _Dropout(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.net(x).squeeze(-1), 1.0))


def _positive(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        share = pyro.sample("share", dist.Beta(1.0, 1.0))
        pyro.sample("x", dist.Normal(rate * share, 1.0), obs=x[:, 0])


def _positive_guide(x: Tensor) -> None:
    """Other families of the same supports."""
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("rate", dist.LogNormal(loc, 1.0))
        pyro.sample("share", dist.Uniform(0.0, 1.0))


def _linked_guide(x: Tensor) -> None:
    """A local site that depends on a global one."""
    loc = pyro.param("loc", torch.tensor(0.0))
    w = pyro.sample("w", dist.Normal(loc, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(w + x[:, 0], 1.0))


def _linked(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def _one_hot(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.OneHotCategorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(k, 1.0).to_event(1), obs=x)


def _one_hot_guide(x: Tensor) -> None:
    net = pyro.module("wide", _WIDE)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("k", dist.OneHotCategoricalStraightThrough(logits=net(x)))


_WIDE = nn.Linear(3, 3)


def _volatility(x: Tensor) -> None:
    """One series: its length is an event, and each row is another series."""
    with pyro.plate("data", len(x), dim=-1):
        walk = dist.MultivariateNormal(torch.zeros(3), scale_tril=torch.ones(3, 3).tril())
        h = pyro.sample("h", walk)
        pyro.sample("x", dist.Normal(0.0, h.exp()).to_event(1), obs=x)


def _belief_net(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
        logits = z.sum(-1, keepdim=True).expand(-1, 3)
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def _annealed_plain(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def _two_plates(x: Tensor) -> None:
    with pyro.plate("columns", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)


def _other_order(x: Tensor) -> None:
    """The same plates at the same dims, in reversed order."""
    net = pyro.module("net", _NET)
    with pyro.plate("data", len(x), dim=-1), pyro.plate("columns", 3, dim=-2):
        pyro.sample("z", dist.Normal(net(x).squeeze(-1) + x.T, 1.0))


def _of_any_batch(*batch: Tensor) -> None:
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


_FLOW = dist.transforms.spline(2, count_bins=4)


def _flow_model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])


def _flow_guide(x: Tensor) -> None:
    """A normal through a spline flow."""
    flow = pyro.module("flow", _FLOW)
    with pyro.plate("data", len(x), dim=-1):
        base = dist.Normal(x[:, :2], 1.0).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [flow]))


def _linked_globals(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(a, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(a * b, 1.0), obs=x[:, 0])


PAIRS: dict[str, Callable[[], Pair]] = {
    "AutoNormal": lambda: _auto(_normal, autoguide.AutoNormal, REAL),
    "AutoDelta": lambda: _auto(_normal, autoguide.AutoDelta, REAL),
    "AutoMultivariateNormal": lambda: _auto(_normal, autoguide.AutoMultivariateNormal, REAL),
    "AutoLowRank": lambda: _auto(_normal, autoguide.AutoLowRankMultivariateNormal, REAL),
    "AutoDelta on positives": lambda: _auto(_poisson, autoguide.AutoDelta, COUNTS),
    "AutoNormal on positives": lambda: _auto(_poisson, autoguide.AutoNormal, COUNTS),
    "GlobalNormal": lambda: (_poisson, GlobalNormal(_poisson, COUNTS), (COUNTS,)),
    "annealed KL": lambda: (_annealed, _annealed_guide, (REAL,)),
    "auxiliary site": lambda: (_normal, _auxiliary_guide, (REAL,)),
    "shared parameter": lambda: (_shared_param_model, _shared_param_guide, (REAL,)),
    "factor in the guide": lambda: (_normal, _factor_guide, (REAL,)),
    "neural baseline": lambda: (_sampled_discrete, _baseline_guide, (REAL,)),
    "dropout": lambda: (_annealed_plain, _Dropout(), (REAL,)),
    "other families": lambda: (_positive, _positive_guide, (REAL,)),
    "linked sites": lambda: (_linked, _linked_guide, (REAL,)),
    "one-hot": lambda: (_one_hot, _one_hot_guide, (REAL,)),
    "conditioned": lambda: (
        pyro.condition(_linked, {"w": torch.tensor(0.5)}),
        auto_guide(pyro.condition(_linked, {"w": torch.tensor(0.5)}), REAL),
        (REAL,),
    ),
    "AutoDiagonalNormal": lambda: _auto(_poisson, autoguide.AutoDiagonalNormal, COUNTS),
    "AutoLaplace": lambda: _auto(_normal, autoguide.AutoLaplaceApproximation, REAL),
    "AutoStructured": lambda: _auto(_poisson, autoguide.AutoStructured, COUNTS),
    "enumerated guide": lambda: (
        _sampled_discrete,
        config_enumerate(_sampled_discrete_guide),
        (REAL,),
    ),
    "volatility": lambda: (_volatility, AmortizedMultivariateNormal(_volatility, REAL), (REAL,)),
    "belief net": lambda: (_belief_net, AmortizedCategorical(_belief_net, BITS), (BITS,)),
    "batch norm": lambda: (_annealed_plain, _Normed(), (REAL,)),
    "amortised": lambda: (_annealed_plain, AmortizedNormal(_annealed_plain, REAL), (REAL,)),
    "plates in another order": lambda: (_two_plates, _other_order, (REAL,)),
    "any batch": lambda: (_normal, _of_any_batch, (REAL,)),
    "flow": lambda: (_flow_model, _flow_guide, (REAL,)),
    "AutoIAFNormal": lambda: _auto(_linked_globals, autoguide.AutoIAFNormal, REAL),
    "encoder of gaps": lambda: (
        _annealed_plain,
        AmortizedNormal(_annealed_plain, REAL, encoder=PartialEncoder(3, 2)),
        (REAL,),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_check_passes_a_valid_guide_without_warnings(name: str) -> None:
    model, guide, batch = PAIRS[name]()
    issues = check(model, guide, *batch)
    assert [str(f) for f in issues if f.severity != "note"] == []


def _broadcast_prior(x: Tensor) -> None:
    """A prior that has the rows only by the parameter that the guide has created."""
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", dim=-1):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z + 0 * x[:, 0], 1.0), obs=x[:, 0])


@pytest.mark.filterwarnings("ignore:Found plate statements in guide")
@pytest.mark.parametrize(("name", "codes"), [("loc", []), ("other", ["shape"])])
def test_check_reads_a_broadcast_prior_with_the_values_of_the_guide(
    name: str, codes: list[str]
) -> None:
    """Alone the prior has batch shape (); Pyro trains the first guide and refuses the second."""

    def guide(x: Tensor) -> None:
        loc = pyro.param(name, torch.zeros(len(x)))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0))

    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    assert [issue.code for issue in check(_broadcast_prior, guide, x).errors] == codes
    pyro.clear_param_store()
    with nullcontext() if not codes else pytest.raises(ValueError, match="shapes disagree"):
        Trace_ELBO().loss(_broadcast_prior, guide, x)
    pyro.clear_param_store()
