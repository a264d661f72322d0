"""Kinds of programs that `fit` takes, and side effects."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm import fit
from ppl_lvm.models.gm_vae import GaussianMixtureVAE
from small_programs import Factor, FactorGuide, Mean, factor_data


def test_runs_are_equal_for_equal_seeds_only() -> None:
    x = factor_data()
    runs = [
        fit(Factor, FactorGuide, x, num_steps=30, batch_size=32, seed=seed) for seed in (1, 1, 2)
    ]
    assert runs[0].history == runs[1].history
    assert all(torch.equal(v, runs[1].parameters()[n]) for n, v in runs[0].parameters().items())
    assert runs[0].history != runs[2].history


def test_fits_do_not_change_each_other_or_the_programs() -> None:
    x = factor_data()
    model, guide = Factor(), FactorGuide()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    first = fit(model, guide, x, num_steps=50)
    parameters = first.parameters()
    second = fit(model, guide, -x + 3, num_steps=50)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(torch.equal(v, parameters[n]) for n, v in first.parameters().items())
    assert not torch.equal(first.parameters()["b"], second.parameters()["b"])
    assert len(pyro.get_param_store()) == 0


def test_fit_trains_plain_functions_with_param_statements() -> None:
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

    run = fit(model, guide, factor_data(), num_steps=50)
    assert sorted(run.parameters()) == ["a", "decoder$$$bias", "decoder$$$weight", "s"]
    assert not torch.equal(run.parameters()["a"], torch.zeros(3, 1))
    assert not torch.equal(run.parameters()["decoder$$$weight"], weight)
    assert torch.equal(decoder.weight.detach(), weight)


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_transposed_parameter_is_trained_like_a_contiguous_one(engine: Any) -> None:
    """Pyro's store makes its tensors contiguous. Of a transposed weight it would hold a copy that
    the program never reads."""

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
        run = fit(model, guide, factor_data(), num_steps=20, engine=engine)
        assert torch.equal(decoder.weight, before)
        return run.parameters()

    columns = torch.linspace(-1, 1, 6).reshape(2, 3)
    transposed, contiguous = trained(columns.t()), trained(columns.t().contiguous())
    assert sorted(transposed) == ["a", "decoder$$$weight"]
    assert not torch.allclose(transposed["decoder$$$weight"], columns.t(), atol=1e-3)
    for name, value in contiguous.items():
        assert torch.allclose(transposed[name], value, rtol=1e-5, atol=1e-6), name


def test_fit_takes_autoguides_as_class_and_as_instance() -> None:
    x = torch.linspace(-1, 3, 40)
    exact_mean = x.sum() / 41
    for guide in (AutoNormal, AutoNormal(Mean())):
        run = fit(Mean(), guide, x, num_steps=1000, optimizer="Adam(lr=0.02)")
        assert float(run.parameters()["locs.m"]) == pytest.approx(float(exact_mean), abs=0.1)


def test_fit_leaves_the_param_store_unchanged() -> None:
    """Neither initialization nor training adds parameters to the store."""
    pyro.param("mine", torch.ones(2))
    x = (torch.rand(40, 6) < 0.4).float()
    fit(GaussianMixtureVAE(components=2, latent=2, hidden=(4,)), None, x, num_steps=2)
    assert list(pyro.get_param_store().keys()) == ["mine"]
