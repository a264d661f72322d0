"""Fits without gradient steps."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample

from known_posteriors import flat_model, flat_regression, linear_normal
from ppl_lvm import check, fit, load_run, sample_prior, signature
from ppl_lvm.models import GaussianMixture

KNOWN = flat_regression()
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "flat"
    return fit(flat_model, None, KNOWN.batch, directory=directory, **QUIET)


def test_default_fit_of_a_regression_with_flat_priors_has_the_exact_posterior(run):
    sd = KNOWN.covariance.diagonal().sqrt()
    b = run.posterior(2000)["b"]
    assert ((b.mean(0) - KNOWN.mean).abs() / sd).max() < 0.15
    assert (b.std(0) / sd - 1).abs().max() < 0.1
    assert (run.results["method"], run.results["verdict"]) == ("auto", "good")
    assert run.results["converged"]
    assert torch.get_default_dtype() == torch.float32


def test_run_without_steps_is_loaded_with_its_draws_and_precision(run):
    loaded = load_run(run.directory, model=flat_model)
    assert loaded.pair.dtype == torch.float64
    assert torch.equal(loaded.posterior(100)["s"], run.posterior(100)["s"])
    loc = loaded.parameters()["loc"]
    assert torch.equal(loc, run.parameters()["loc"])
    assert loaded.batch(KNOWN.batch)[0].dtype == torch.float64


def test_summary_names_every_value_and_its_errors(run):
    table = run.summary()
    assert list(table.index) == ["b[0]", "b[1]", "s"]
    assert table["mean"]["b[0]"] == pytest.approx(float(KNOWN.mean[0]), abs=3)
    assert (table["r_hat"] < 1.02).all()
    assert (table["mcse_mean"] < 0.05 * table["sd"]).all()


@pytest.mark.filterwarnings("ignore:Particles run one by one")
def test_arviz_has_the_draws_in_several_chains(run):
    data = run.to_arviz(KNOWN.batch, num_samples=80)
    assert dict(data.posterior.sizes)["chain"] == 4
    assert not hasattr(data, "prior")  # nothing can be drawn from an improper prior
    assert data.log_likelihood["y"].shape == (4, 20, 60)


def test_prediction_of_new_rows_has_the_exact_mean_and_spread(run):
    x = torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    prediction = run.predict((x,), num_samples=3000)
    mean = x @ KNOWN.mean
    s = run.posterior(3000)["s"]
    sd = ((x @ KNOWN.covariance * x).sum(1) + s.square().mean()).sqrt()
    assert ((prediction.mean["y"] - mean).abs() < 6 * sd / 2000**0.5).all()
    low, high = prediction.interval(0.9)["y"]
    width = (high - low) / (2 * 1.645 * sd)
    assert ((width - 1).abs() < 0.12).all()


def test_prediction_with_the_wrong_number_of_tensors_names_them(run):
    with pytest.raises(ValueError, match="takes 2 tensors, of which it observes 1; got 3"):
        run.predict((KNOWN.batch[0],) * 3)


def test_method_is_named_and_recorded():
    known = linear_normal()
    run = fit(known.model, None, known.batch, method="laplace", **QUIET)
    assert run.results["method"] == "laplace"
    assert run.results["log_evidence"] * 12 == pytest.approx(known.log_evidence, abs=0.05)
    assert run.results["bound"] * 12 == pytest.approx(known.log_evidence, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "laplce"}, "laplace"),
        ({"method": "laplace", "num_steps": 10}, "num_steps: it is an option of gradient steps"),
    ],
)
def test_option_that_a_method_lacks_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit(flat_model, None, KNOWN.batch, **options, **QUIET)


def test_method_with_a_guide_is_refused():
    with pytest.raises(ValueError, match=r"makes its own guide\. Pass guide=None"):
        fit(flat_model, lambda X, y: None, KNOWN.batch, method="dadvi", **QUIET)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (GaussianMixture(2), "parameters to initialize"),
        (lambda x: _local(x), "no latent outside the plate"),
        (lambda x: _parameter(x), "the parameter 'm'"),
        (lambda x: _discrete(x), "'k' is discrete"),
    ],
    ids=["initialized", "local", "parameter", "discrete"],
)
def test_method_refuses_a_model_that_it_does_not_serve(model, reason):
    with pytest.raises(ValueError, match=reason):
        fit(model, None, torch.randn(20, 2), method="laplace", **QUIET)


def _local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[:, None].expand(-1, 2), 1.0).to_event(1), obs=x)


def _parameter(x):
    m = pyro.param("m", torch.zeros(2))
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m + w, 1.0).to_event(1), obs=x)


def _discrete(x):
    k = pyro.sample("k", dist.Bernoulli(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(k, 1.0).expand([2]).to_event(1), obs=x)


@pytest.mark.filterwarnings("ignore:Particles run one by one")
def test_options_of_steps_choose_gradient_steps():
    run = fit(flat_model, None, KNOWN.batch, num_steps=3, **QUIET)
    assert "method" not in run.results
    assert run.results["steps"] == 3


def test_signature_and_check_of_a_model_with_improper_priors():
    X, y = (t.float() for t in KNOWN.batch)
    assert str(signature(flat_model, X, y)["s"].support).startswith("GreaterThan")
    assert not check(flat_model, None, X, y)


def test_nothing_is_drawn_from_an_improper_prior():
    with pytest.raises(ValueError, match="The prior of 'b' is improper"):
        sample_prior(flat_model, KNOWN.batch)


class Regression(PyroModule):
    """A module with a buffer, which a run converts to its precision."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unit", torch.tensor([1.0, 10.0]))
        self.b = PyroSample(dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    def forward(self, x, y):
        b = self.b
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x / self.unit @ b, 1.0), obs=y)


@pytest.mark.slow
def test_module_with_buffers_and_samples_is_fitted_in_double_precision():
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    y = (x / torch.tensor([1.0, 10.0])) @ torch.tensor([1.0, -1.0])
    model = Regression()
    run = fit(model, None, (x, y), method="laplace", **QUIET)
    scaled = (x / model.unit).double()
    exact = torch.linalg.solve(scaled.T @ scaled + torch.eye(2).double(), scaled.T @ y.double())
    assert torch.allclose(run.parameters()["loc"], exact, atol=1e-5)
    assert model.unit.dtype == torch.float32


def test_model_that_cannot_run_in_double_precision_has_a_remedy():
    single = torch.eye(2)

    def model(x):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(single @ b, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"does not run in double precision .*\.to\(x\)"):
        fit(model, None, torch.randn(9, 2), method="laplace", **QUIET)


WEIGHTS = torch.arange(12) % 3
REPEATED = torch.arange(12).repeat_interleave(WEIGHTS)


@pytest.mark.parametrize("method", ["laplace", pytest.param("auto", marks=pytest.mark.slow)])
def test_weights_equal_repeated_rows(method):
    known = linear_normal()
    X, y = known.batch
    weighted = fit(known.model, None, (X, y), weights=WEIGHTS, method=method, **QUIET)
    repeated = fit(known.model, None, (X[REPEATED], y[REPEATED]), method=method, **QUIET)
    assert weighted.results["method"] == method
    for name in ("log_evidence", "bound"):
        assert weighted.results[name] == pytest.approx(repeated.results[name], abs=1e-3)
    table, other = weighted.summary(), repeated.summary()
    error = 5 * (2 / 1024) ** 0.5  # of 1,024 draws, resampled by weights that differ by rounding
    assert ((table["mean"] - other["mean"]).abs() < error * other["sd"]).all()
    assert ((table["sd"] / other["sd"] - 1).abs() < error).all()


def test_weights_of_any_size_weight_the_log_density():
    known = linear_normal()
    X, y = known.batch
    weights = torch.rand(12, generator=torch.Generator().manual_seed(0)).double() * 3
    run = fit(known.model, None, (X, y), weights=weights, method="laplace", **QUIET)
    precision = X.T @ (weights[:, None] * X) / 0.25 + torch.eye(3).double() / 4
    mean = torch.linalg.solve(precision, X.T @ (weights * y)) / 0.25
    sd = torch.linalg.inv(precision).diagonal().sqrt()
    assert ((run.guide.loc - mean).abs() < 1e-4 * sd).all()


def _latent_rows(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def test_weighted_rows_with_latents_are_repeated():
    y = KNOWN.batch[1][:9] / 1e4
    weighted = fit(_latent_rows, None, y, weights=WEIGHTS[:9], method="laplace", **QUIET)
    repeated = fit(_latent_rows, None, y[REPEATED[:9]], method="laplace", **QUIET)
    assert weighted.summary().equals(repeated.summary())
    with pytest.raises(ValueError, match="rows have the latent 'z', and weights that are no whole"):
        fit(_latent_rows, None, y, weights=WEIGHTS[:9] / 2, method="laplace", **QUIET)


def _mean_of_rows(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.slow
def test_validation_reports_the_predictive_density_of_held_out_rows():
    y = torch.randn(20, generator=torch.Generator().manual_seed(0)).double() + 3
    run = fit(_mean_of_rows, None, y, method="laplace", validation=0.3, **QUIET)
    assert run.results["log_evidence_of"] == "held-out rows"
    train, held_out = (part.tensors[0] for part in run.data())
    variance, ones = 1 / (0.01 + len(train)), torch.ones(len(held_out)).double()
    predictive = torch.distributions.MultivariateNormal(
        variance * train.sum() * ones, torch.diag(ones) + variance
    )
    exact = float(predictive.log_prob(held_out)) / len(held_out)
    assert run.results["log_evidence_kind"] == "predictive"
    assert run.results["log_evidence"] == pytest.approx(exact, abs=0.05)
