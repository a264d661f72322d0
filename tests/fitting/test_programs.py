"""Kinds of programs that `fit` takes, and side effects."""

import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Categorical, MultivariateNormal, Normal
from pyro.infer import SVI, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoHierarchicalNormalMessenger,
    AutoNormal,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
)
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm import check, fit, guides, load_data, load_run
from ppl_lvm.estimators import ELBO, LeaveOneOut
from ppl_lvm.models.gm_vae import GaussianMixtureVAE
from small_programs import Factor, FactorGuide, Mean, factor_data


@pytest.mark.slow
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
        run = fit(Mean(), guide, x, num_steps=250, optimizer="Adam(lr=0.05)")
        assert float(run.parameters()["locs.m"]) == pytest.approx(float(exact_mean), abs=0.1)


def test_fit_leaves_the_param_store_unchanged() -> None:
    """Neither initialization nor training adds parameters to the store."""
    pyro.param("mine", torch.ones(2))
    x = (torch.rand(40, 6) < 0.4).float()
    fit(GaussianMixtureVAE(components=2, latent=2, hidden=(4,)), None, x, num_steps=2)
    assert list(pyro.get_param_store().keys()) == ["mine"]


class TwoMeans(nn.Module):
    """Mixture of two normals as a module of torch, which announces no parameter to Pyro."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([-1.0, 0.5]))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            probs = torch.tensor([0.5, 0.5])
            k = pyro.sample("k", Categorical(probs), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(self.mean[k], 1.0), obs=x)


@pytest.mark.parametrize("objective", [None, "TraceEnum_ELBO", "ELBO"])
def test_parameters_of_a_plain_module_receive_gradients(objective: Any) -> None:
    x = torch.tensor([-2.0, -1.5, 1.0, 2.5])
    model: Any = TwoMeans()
    run = fit(model, None, x, objective=objective, optimizer="Adam(lr=0.05)", num_steps=400)
    mean = run.parameters()["mean"]
    log_p = Normal(mean, 1.0).log_prob(x[:, None])
    exact = (log_p - math.log(2)).logsumexp(-1).mean()
    assert run.results["bound"] == pytest.approx(float(exact), abs=1e-5)
    share = log_p.softmax(-1)  # the maximum is a fixed point of EM
    of_share = (share * x[:, None]).sum(0) / share.sum(0)
    torch.testing.assert_close(of_share, mean, atol=0.02, rtol=0)


class OneMean(nn.Module):
    """Normal rows around a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(self.mean, 1.0), obs=x)


def test_mean_of_a_plain_module_without_latents_is_fitted() -> None:
    model: Any = OneMean()
    x = torch.tensor([-2.0, -1.5, 1.0, 3.5])
    run = fit(model, None, x, optimizer="Adam(lr=0.05)", num_steps=400)
    assert run.parameters()["mean"].item() == pytest.approx(0.25, abs=1e-3)


def _some_classes(x: Tensor, y: Tensor) -> None:
    p = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)
    mean = pyro.param("mean", torch.tensor([-0.5, 0.5]))
    known = ~y.isnan()
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample(
            "k", Categorical(torch.stack([1 - p, p])), obs=y.nan_to_num(0.0).long(), obs_mask=known
        )
        pyro.sample("x", Normal(mean[k], 1.0), obs=x)


def test_obs_mask_of_a_class_has_the_exact_bound_with_config_enumerate() -> None:
    torch.manual_seed(0)
    y = torch.bernoulli(torch.full((40,), 0.3))
    x = 3 * y - 1 + torch.randn(40)
    known = torch.rand(40) < 0.5
    data = load_data((x, y.where(known, torch.tensor(math.nan))), missing="keep")
    with pytest.raises(ValueError, match=r"'k_unobserved'.*obs_mask=. Wrap.*config_enumerate"):
        fit(_some_classes, None, data)
    run = fit(config_enumerate(_some_classes), None, data, num_steps=100)
    p, mean = (run.parameters()[name] for name in ("p", "mean"))
    log_joint = torch.stack([1 - p, p]).log() + Normal(mean, 1.0).log_prob(x[:, None])
    of_class = log_joint.gather(-1, y.long()[:, None])[:, 0]
    exact = torch.where(known, of_class, log_joint.logsumexp(-1)).mean()
    assert run.results["bound"] == pytest.approx(float(exact), abs=1e-5)


def _some_positions(x: Tensor, y: Tensor) -> None:
    w = pyro.param("w", torch.tensor(0.5))
    known = ~x.isnan()
    with pyro.plate("data", len(x), dim=-1):
        prior = Normal(0.0, 1.0).expand([len(x)])
        z = pyro.sample("z", prior, obs=x.nan_to_num(0.0), obs_mask=known)
        pyro.sample("y", Normal(w * z, 1.0), obs=y)


@pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.slow), 20])
def test_obs_mask_of_a_continuous_latent_has_the_exact_evidence(batch_size: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(40)
    y = 0.8 * x + torch.randn(40)
    known = torch.rand(40) < 0.6
    batch = (x.where(known, torch.tensor(math.nan)), y)
    run = fit(
        _some_positions,
        None,
        load_data(batch, missing="keep"),
        optimizer="Adam(lr=0.01)",
        num_steps=400,
        batch_size=batch_size,
    )
    w = run.parameters()["w"]
    complete = Normal(0.0, 1.0).log_prob(x) + Normal(w * x, 1.0).log_prob(y)
    marginal = Normal(0.0, (1 + w**2).sqrt()).log_prob(y)
    exact = float(torch.where(known, complete, marginal).mean())
    error = run.results["bound_monte_carlo_error"]
    assert exact - 0.1 < run.results["bound"] < exact + 5 * error
    evidence = run.log_evidence(load_data(batch, missing="keep"), 1000)
    assert evidence.value == pytest.approx(exact, abs=5 * evidence.monte_carlo_error)
    # A guide that scores the masked values has no bound.
    with pytest.raises(ValueError, match=r"unmasked-in-guide: The model masks some.*z_unobserved"):
        fit(_some_positions, AutoNormal(_some_positions), load_data(batch, missing="keep"))


AMORTIZED = ("AmortizedNormal", "AmortizedFlow", "AmortizedJoint", "AmortizedJointNormal")


@pytest.mark.parametrize("name", [*AMORTIZED, "LocalNormal", "SemiAmortized"])
def test_guides_of_the_package_mask_what_the_model_masks(name: str) -> None:
    x = torch.tensor([0.5, math.nan, -1.0, math.nan, 0.1, 2.0])
    batch = (x, torch.linspace(-1.0, 1.0, 6))
    if name in ("LocalNormal", "SemiAmortized"):
        with pytest.raises(ValueError, match=f"{name}: the model masks latents"):
            getattr(guides, name)(_some_positions, *batch)
        return
    guide = getattr(guides, name)(_some_positions, *batch)
    assert [i.code for i in check(_some_positions, guide, *batch).errors] == []
    site = poutine.trace(guide).get_trace(*batch).nodes["z_unobserved"]
    assert site["mask"].tolist() == x.isnan().tolist()


def _mean(x: Tensor) -> None:
    w = pyro.sample("w", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(w, 1.0), obs=x)


class _Affine(AutoNormalMessenger):
    """Another posterior of w, with parameters of Pyro's store."""

    def get_posterior(self, name: str, prior: Any) -> Any:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        return Normal(pyro.param("loc", torch.zeros(())) + prior.loc, scale)


MESSENGERS = [
    _Affine,
    pytest.param(AutoNormalMessenger, marks=pytest.mark.slow),
    pytest.param(AutoHierarchicalNormalMessenger, marks=pytest.mark.slow),
    pytest.param(AutoRegressiveMessenger, marks=pytest.mark.slow),
]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("messenger", MESSENGERS)
def test_guide_messengers_train_and_are_loaded(messenger: Any, tmp_path: Path) -> None:
    """q(w) = N(Σx / (N + 1), 1 / (N + 1)) is in each family; the bound is then log p(x)."""
    x = torch.tensor([1.0, 2.0, 0.5, 3.0])
    exact = float(MultivariateNormal(torch.zeros(4), torch.eye(4) + 1.0).log_prob(x)) / 4
    options: dict[str, Any] = {"optimizer": "Adam(lr=0.05)", "progress": False, "engine": "eager"}
    run = fit(_mean, messenger, x, num_steps=150, directory=tmp_path / "run", **options)
    assert not check(_mean, messenger(_mean), x)
    assert run.record["guide"]["name"] == messenger.__name__
    assert exact - 0.05 < run.results["bound"] < exact + 5 * run.results["bound_monte_carlo_error"]
    assert run.summary(400)["mean"]["w"] == pytest.approx(1.3, abs=0.2)
    loaded = load_run(tmp_path / "run")
    assert loaded.log_evidence(x, 200).value == run.log_evidence(x, 200).value
    assert run.to_arviz(x, num_samples=5).posterior["w"].shape == (1, 5)


@pytest.mark.parametrize("loss", [ELBO(), LeaveOneOut(num_particles=2)])
def test_guide_messengers_train_by_plain_svi(loss: Any) -> None:
    x = torch.tensor([1.0, 2.0, 0.5, 3.0])
    pyro.set_rng_seed(0)
    guide = AutoNormalMessenger(_mean)
    svi = SVI(_mean, guide, pyro.optim.Adam({"lr": 0.05}), loss)
    for _ in range(150):
        svi.step(x)
    assert float(guide.median(x)["w"].detach()) == pytest.approx(1.3, abs=0.2)


def test_guide_messenger_leaves_out_enumerated_sites() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(w * (1 - 2 * c), 1.0), obs=x)

    x = torch.tensor([1.0, -2.0, 0.5, 3.0])
    guide = AutoNormalMessenger(poutine.block(model, hide=["c"]))
    run = fit(model, guide, x, num_steps=5, progress=False, engine="eager")
    assert run.encode(x)["c"].shape == (4, 2)


def test_points_of_a_guide_that_a_function_closes_over() -> None:
    """Draws hold the fitted point, not the user's parameter, which training leaves alone."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(w, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    points = AutoDelta(poutine.block(model, expose=["w"]))

    def guide(x: Tensor) -> None:  # with a parameter for each training row
        points(x)
        loc = pyro.param("loc", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(loc, 0.7))

    x = torch.full((20,), 5.0)
    points(x)
    before = points.w.detach().clone()
    run = fit(model, guide, x, num_steps=20, progress=False, engine="eager")
    fitted = run.parameters()["AutoDelta.w"]
    assert not torch.equal(fitted, before)
    assert torch.equal(points.w, before)
    for n in (20, 3):
        drawn = run.sample(n)
        assert drawn["x"].shape == (n,)
        torch.testing.assert_close(drawn["w"].flatten()[0], fitted)
    assert torch.equal(run.posterior(2)["w"], fitted.expand(2))
    assert torch.equal(points.w, before)
