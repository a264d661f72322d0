"""Signatures of programs with known declarations."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_lvm.programs.minibatch import ScaleDataPlate
from ppl_lvm.programs.signatures import Signature, describe, signature


class Topics(PyroModule):
    """A program with global, local and discrete sites, nested plates and parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = PyroParam(torch.ones(3), constraint=constraints.positive)
        self.decoder = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> None:
        pi = pyro.sample("pi", dist.Dirichlet(torch.ones(4)))
        with pyro.plate("topics", 4, dim=-2):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(pi), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            with pyro.plate("labels", 2, dim=-2):
                pyro.sample("count", dist.Poisson(rate[k[0] if k.dim() > 1 else k].sum(-1).sum()))
            pyro.deterministic("twice", 2 * z)
            loc = self.decoder(z)
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)


@pytest.fixture
def topics() -> Signature:
    return signature(Topics(), torch.zeros(5, 3))


def test_signature_lists_sites_in_order_with_their_roles(topics: Signature) -> None:
    assert [site.name for site in topics.sites] == ["pi", "rate", "k", "z", "count", "x"]
    assert [site.name for site in topics.observed] == ["x"]
    assert [site.name for site in topics.local_latents] == ["k", "z", "count"]
    assert [site.name for site in topics.global_latents] == ["pi", "rate"]


def test_signature_has_shapes_and_supports(topics: Signature) -> None:
    assert (topics["pi"].batch_shape, topics["pi"].event_shape) == ((), (4,))
    assert (topics["rate"].batch_shape, topics["rate"].event_shape) == ((4, 1), ())
    assert (topics["z"].batch_shape, topics["z"].event_shape) == ((5,), (2,))
    assert topics["count"].shape == (2, 5)
    assert describe(topics["pi"].support) == "simplex"
    assert describe(topics["count"].support) == "0, 1, 2, …"


def test_signature_tells_discrete_enumerable_and_reparameterized_sites(topics: Signature) -> None:
    assert topics["k"].discrete
    assert topics["k"].values == 4
    assert topics["k"].enumerate == "parallel"
    assert topics["count"].discrete
    assert topics["count"].values is None  # a Poisson has infinitely many
    assert not topics["z"].discrete
    assert topics["z"].reparameterized
    assert not topics["k"].reparameterized


def test_signature_has_dim_size_and_nesting_of_plates(topics: Signature) -> None:
    assert topics["count"].plates == ("data", "labels")
    assert topics.plate("labels").inside == ("data",)
    assert (topics.plate("data").dim, topics.plate("data").size) == (-1, 5)
    assert topics.plate("data").full_size == 5


def test_signature_has_direct_dependencies(topics: Signature) -> None:
    assert topics["k"].depends_on == ("pi",)
    assert topics["x"].depends_on == ("z",)
    assert set(topics["count"].depends_on or ()) == {"rate", "k"}


def test_signature_has_constraints_of_parameters(topics: Signature) -> None:
    parameters = {p.name: (p.shape, describe(p.constraint)) for p in topics.parameters}
    assert parameters == {
        "scale": ((3,), "positive"),
        "decoder$$$weight": ((3, 2), "real"),
        "decoder$$$bias": ((3,), "real"),
    }


def test_signature_of_a_mini_batch_has_the_full_size() -> None:
    plate = signature(ScaleDataPlate(50)(Topics()), torch.zeros(5, 3)).plate("data")
    assert (plate.size, plate.full_size) == (5, 50)


def test_printed_signature_names_every_site_plate_and_parameter(topics: Signature) -> None:
    text = str(topics)
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    for name in ["pi", "rate", "k", "z", "count", "x", "topics", "data", "labels", "scale"]:
        assert name in lines
    assert "simplex" in lines["pi"]
    assert "pi" in lines["k"].split("data")[1]


def test_signature_preserves_the_random_state() -> None:
    def noisy(x: Tensor) -> None:
        offset = float(np.random.rand() + random.random())
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(offset, 1.0)), 1.0), obs=x)

    before = (torch.get_rng_state(), repr(np.random.get_state()), random.getstate())
    signature(noisy, torch.tensor(0.0))
    after = (torch.get_rng_state(), repr(np.random.get_state()), random.getstate())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_signature_leaves_no_parameters_in_the_store() -> None:
    def model(x: Tensor) -> None:
        pyro.param("loc", torch.zeros(3))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    signature(model, torch.tensor(0.0))
    signature(Topics(), torch.zeros(5, 3))
    assert dict(pyro.get_param_store().items()) == {}


def test_signature_uses_the_callers_parameters() -> None:
    pyro.param("loc", torch.zeros(3))

    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.param("loc").sum(), 1.0), obs=x)

    assert [p.name for p in signature(model, torch.tensor(0.0)).parameters] == ["loc"]


def test_signature_preserves_running_means() -> None:
    class Normed(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("x", dist.Normal(self.norm(x), 1.0).to_event(1), obs=x)

    model = Normed()
    signature(model, torch.randn(8, 3) + 5)
    buffers = dict(model.norm.named_buffers())
    assert torch.equal(buffers["running_mean"], torch.zeros(3))
    assert buffers["num_batches_tracked"] == 0


def test_sequential_plate_has_no_dim() -> None:
    def model(x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0), obs=x[i])

    topics = signature(model, torch.zeros(2))
    assert topics.plate("data").dim is None
    assert "sequential" in str(topics)


def test_distribution_without_support_has_the_real_support() -> None:
    class Shifted(dist.TorchDistribution):
        arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

        def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
            return torch.ones(sample_shape)

        def log_prob(self, value: Tensor) -> Tensor:
            return -value

    topics = signature(lambda: pyro.sample("z", Shifted(validate_args=False)))
    assert describe(topics["z"].support) == "real"


def test_signature_lists_its_sites_for_an_unknown_name(topics: Signature) -> None:
    with pytest.raises(KeyError, match=r"'w'.*'pi'"):
        topics["w"]
    assert "w" not in topics


def test_signature_keeps_a_modules_parameters_despite_equal_names_in_the_store() -> None:
    pyro.param("scale", 7 * torch.ones(3))  # somebody else's, of the same name
    model = Topics()
    signature(model, torch.zeros(5, 3))
    assert torch.equal(model.scale, torch.ones(3))
