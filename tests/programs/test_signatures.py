"""What `signature` reads, against programs whose declarations are known."""

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
    """A program with a bit of everything: global, local, discrete, nested plates, parameters."""

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
def read() -> Signature:
    return signature(Topics(), torch.zeros(5, 3))


def test_sites_come_in_the_order_of_the_code_with_their_roles(read: Signature) -> None:
    assert [site.name for site in read.sites] == ["pi", "rate", "k", "z", "count", "x"]
    assert [site.name for site in read.observed] == ["x"]
    assert [site.name for site in read.local_latents] == ["k", "z", "count"]
    assert [site.name for site in read.global_latents] == ["pi", "rate"]


def test_shapes_and_supports(read: Signature) -> None:
    assert (read["pi"].batch_shape, read["pi"].event_shape) == ((), (4,))
    assert (read["rate"].batch_shape, read["rate"].event_shape) == ((4, 1), ())
    assert (read["z"].batch_shape, read["z"].event_shape) == ((5,), (2,))
    assert read["count"].shape == (2, 5)
    assert describe(read["pi"].support) == "simplex"
    assert describe(read["count"].support) == "0, 1, 2, …"


def test_which_sites_are_discrete_enumerable_and_reparameterized(read: Signature) -> None:
    assert read["k"].discrete
    assert read["k"].values == 4
    assert read["k"].enumerate == "parallel"
    assert read["count"].discrete
    assert read["count"].values is None  # a Poisson has infinitely many
    assert not read["z"].discrete
    assert read["z"].reparameterized
    assert not read["k"].reparameterized


def test_plates_know_their_dim_size_and_nesting(read: Signature) -> None:
    assert read["count"].plates == ("data", "labels")
    assert read.plate("labels").inside == ("data",)
    assert (read.plate("data").dim, read.plate("data").size) == (-1, 5)
    assert read.plate("data").full_size == 5


def test_dependencies_are_the_direct_ones(read: Signature) -> None:
    assert read["k"].depends_on == ("pi",)
    assert read["x"].depends_on == ("z",)
    assert set(read["count"].depends_on or ()) == {"rate", "k"}


def test_parameters_have_their_constraints(read: Signature) -> None:
    found = {p.name: (p.shape, describe(p.constraint)) for p in read.parameters}
    assert found == {
        "scale": ((3,), "positive"),
        "decoder$$$weight": ((3, 2), "real"),
        "decoder$$$bias": ((3,), "real"),
    }


def test_a_mini_batch_stands_for_more_rows() -> None:
    plate = signature(ScaleDataPlate(50)(Topics()), torch.zeros(5, 3)).plate("data")
    assert (plate.size, plate.full_size) == (5, 50)


def test_the_table_names_every_site_plate_and_parameter(read: Signature) -> None:
    text = str(read)
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    for name in ["pi", "rate", "k", "z", "count", "x", "topics", "data", "labels", "scale"]:
        assert name in lines
    assert "simplex" in lines["pi"]
    assert "pi" in lines["k"].split("data")[1]


def test_looking_changes_no_random_state() -> None:
    def noisy(x: Tensor) -> None:
        offset = float(np.random.rand() + random.random())
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(offset, 1.0)), 1.0), obs=x)

    before = (torch.get_rng_state(), repr(np.random.get_state()), random.getstate())
    signature(noisy, torch.tensor(0.0))
    after = (torch.get_rng_state(), repr(np.random.get_state()), random.getstate())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_looking_leaves_no_parameters_behind() -> None:
    def model(x: Tensor) -> None:
        pyro.param("loc", torch.zeros(3))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    signature(model, torch.tensor(0.0))
    signature(Topics(), torch.zeros(5, 3))
    assert dict(pyro.get_param_store().items()) == {}


def test_looking_sees_the_callers_parameters() -> None:
    pyro.param("loc", torch.zeros(3))

    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.param("loc").sum(), 1.0), obs=x)

    assert [p.name for p in signature(model, torch.tensor(0.0)).parameters] == ["loc"]


def test_looking_leaves_running_means_alone() -> None:
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


def test_a_sequential_plate_has_no_dim() -> None:
    def model(x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0), obs=x[i])

    read = signature(model, torch.zeros(2))
    assert read.plate("data").dim is None
    assert "sequential" in str(read)


def test_a_distribution_that_declares_no_support_is_taken_as_real() -> None:
    class Shifted(dist.TorchDistribution):
        arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

        def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
            return torch.ones(sample_shape)

        def log_prob(self, value: Tensor) -> Tensor:
            return -value

    read = signature(lambda: pyro.sample("z", Shifted(validate_args=False)))
    assert describe(read["z"].support) == "real"


def test_an_unknown_site_is_named_with_those_there_are(read: Signature) -> None:
    with pytest.raises(KeyError, match=r"'w'.*'pi'"):
        read["w"]
    assert "w" not in read


def test_looking_does_not_let_the_store_overwrite_a_modules_parameters() -> None:
    pyro.param("scale", 7 * torch.ones(3))  # somebody else's, of the same name
    model = Topics()
    signature(model, torch.zeros(5, 3))
    assert torch.equal(model.scale, torch.ones(3))
