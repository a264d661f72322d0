"""fit takes programs of every kind, works on copies of them, and leaves nothing behind."""

import functools
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.fitting.svi import fit
from ppl_lvm.models.gm_vae import GaussianMixtureVAE
from small_programs import Factor, FactorGuide, Mean, factor_data

quiet = functools.partial(fit, progress=False)


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not() -> None:
    x = factor_data()
    runs = [
        quiet(Factor, FactorGuide, x, num_steps=30, batch_size=32, seed=seed) for seed in (1, 1, 2)
    ]
    assert runs[0].history == runs[1].history
    assert all(torch.equal(v, runs[1].parameters()[n]) for n, v in runs[0].parameters().items())
    assert runs[0].history != runs[2].history


def test_two_fits_leave_each_other_and_the_programs_alone() -> None:
    x = factor_data()
    model, guide = Factor(), FactorGuide()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    first = quiet(model, guide, x, num_steps=50)
    kept = first.parameters()
    second = quiet(model, guide, -x + 3, num_steps=50)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(torch.equal(v, kept[n]) for n, v in first.parameters().items())
    assert not torch.equal(first.parameters()["b"], second.parameters()["b"])
    assert len(pyro.get_param_store()) == 0


def test_plain_functions_with_param_statements() -> None:
    decoder = nn.Linear(1, 3)
    weight = decoder.weight.detach().clone()

    def model(x: Tensor) -> None:
        net = pyro.module("decoder", decoder)
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", Normal(net(z), s).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", torch.zeros(3, 1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(x @ a, 1.0).to_event(1))

    run = quiet(model, guide, factor_data(), num_steps=50)
    assert sorted(run.parameters()) == ["a", "decoder$$$bias", "decoder$$$weight", "s"]
    assert not torch.equal(run.parameters()["a"], torch.zeros(3, 1))
    assert not torch.equal(run.parameters()["decoder$$$weight"], weight)
    assert torch.equal(decoder.weight.detach(), weight)


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_a_parameter_of_another_layout_is_trained(engine: Any) -> None:
    """Pyro's store makes what it is given contiguous: of a transposed weight it keeps a copy,
    which the program never reads. The weight itself is trained, as one row after another is."""

    def trained(weight: Tensor) -> dict[str, Tensor]:
        decoder = nn.Linear(2, 3, bias=False)
        decoder.weight = nn.Parameter(weight)

        def model(x: Tensor) -> None:
            net = pyro.module("decoder", decoder)
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", Normal(0.0, 1.0).expand([2]).to_event(1))
                pyro.sample("x", Normal(net(z), 1.0).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            a = pyro.param("a", torch.zeros(3, 2))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", Normal(x @ a, 1.0).to_event(1))

        before = weight.clone()
        run = quiet(model, guide, factor_data(), num_steps=20, engine=engine)
        assert torch.equal(decoder.weight, before)
        return run.parameters()

    columns = torch.linspace(-1, 1, 6).reshape(2, 3)
    found, wanted = trained(columns.t()), trained(columns.t().contiguous())
    assert sorted(found) == ["a", "decoder$$$weight"]
    assert not torch.allclose(found["decoder$$$weight"], columns.t(), atol=1e-3)
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6), name


def test_autoguides_as_builder_and_as_instance() -> None:
    x = torch.linspace(-1, 3, 40)
    exact_mean = x.sum() / 41
    for guide in (AutoNormal, AutoNormal(Mean())):
        run = quiet(Mean(), guide, x, num_steps=1000, optimizer="Adam(lr=0.02)")
        assert float(run.parameters()["locs.m"]) == pytest.approx(float(exact_mean), abs=0.1)


def test_nothing_is_left_in_pyros_own_store() -> None:
    """Whatever the programs run to start from the data, or while they are trained."""
    pyro.param("mine", torch.ones(2))
    x = (torch.rand(40, 6) < 0.4).float()
    fit(GaussianMixtureVAE(components=2, latent=2, hidden=(4,)), None, x, num_steps=2)
    assert list(pyro.get_param_store().keys()) == ["mine"]
