"""Refusals of Pyro's objectives before training; warnings shown once."""

import warnings

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Categorical, Delta, Normal

from ppl_lvm import check, fit, guides
from ppl_lvm.fitting import svi

X = torch.tensor([-1.0, 0.5, 2.0, 1.5])


def scaled_likelihood(x):
    """Rows with fractional weights around the observation of an enumerated site."""
    means = pyro.param("means", torch.tensor([0.0, 1.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", Bernoulli(0.4), infer={"enumerate": "parallel"})
        with poutine.scale(scale=torch.full((len(x),), 0.5)):
            pyro.sample("x", Normal(means[z.long()], 1.0), obs=x)


def scaled_by_state(x):
    means = pyro.param("means", torch.tensor([0.0, 1.0, 2.0]))
    with pyro.plate("cells", len(x)):
        kind = pyro.sample("kind", Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        with poutine.scale(scale=0.5 + kind):
            pyro.sample("x", Normal(means[kind], 1.0), obs=x)


def point_mass(x):
    level = pyro.sample("level", Delta(pyro.param("value", torch.tensor(0.3))))
    shift = pyro.sample("shift", Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", Normal(level + shift, 1.0), obs=x)


def masked_latent(x):
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=x > 0):
            z = pyro.sample("z", Normal(torch.zeros(()), 1.0))
        pyro.sample("x", Normal(torch.where(x > 0, z, 0.0), 1.0), obs=x)


def looped(x):
    """Its latent is read without an extra dimension on the left."""
    mu = pyro.sample("mu", Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", Normal(torch.zeros(()), 1.0))
        pyro.sample("x", Normal(mu + (z if z.dim() == 1 else z[0]), 1.0), obs=x)


def fit_briefly(model, objective, guide=None):
    return fit(model, guide, X, objective=objective, num_steps=2, progress=False)


@pytest.mark.parametrize(
    ("model", "objective", "words"),
    [
        (scaled_likelihood, "TraceEnum_ELBO", "poutine.scale inside the sum over 'z'. Use ELBO"),
        (scaled_by_state, "TraceEnum_ELBO(num_particles=2)", "sum over 'kind'. Use ELBO"),
        (scaled_by_state, "TraceMeanField_ELBO", "'kind' is in the model alone. Use ELBO"),
        (scaled_likelihood, "TraceGraph_ELBO", "'z' is in the model alone. Use ELBO"),
        (point_mass, "TraceEnum_ELBO", "'level' is a point mass(.|\n)*pyro.deterministic"),
        (point_mass, None, "'level' is a point mass(.|\n)*pyro.deterministic"),
    ],
)
def test_fit_refuses_pyro_objectives_by_site_and_remedy_before_training(model, objective, words):
    with pytest.raises(ValueError, match=words):
        fit_briefly(model, objective)


@pytest.mark.parametrize("model", [scaled_likelihood, scaled_by_state])
def test_fit_trains_pairs_with_the_objective_that_the_refusal_names(model):
    assert fit_briefly(model, "ELBO").results["bound"] < 0


@pytest.mark.parametrize("objective", ["Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO"])
def test_fit_trains_a_point_mass_of_the_guide_with_pyro_objectives(objective):
    def model(x):
        mu = pyro.sample("mu", Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(mu, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", Delta(pyro.param("center", torch.tensor(0.3))))

    run = fit(model, guide, X, objective=objective, num_steps=1, progress=False)
    exact = Normal(0.3, 1.0).log_prob(X).sum() + Normal(0.0, 1.0).log_prob(torch.tensor(0.3))
    assert run.history["bound"][0] == pytest.approx(float(exact) / len(X), abs=1e-5)


def test_check_names_unequal_scales_of_an_enumerated_site():
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.5):
                z = pyro.sample("z", Bernoulli(0.4), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(z, 1.0), obs=x)

    (issue,) = check(model, None, X).errors
    assert issue.code == "unequal-scales"
    assert issue.remedy.startswith("Use one scale")
    assert "Vindex" not in str(issue)


def test_guides_of_the_package_have_the_masks_of_the_model():
    assert check(masked_latent, guides.AmortizedFlow(masked_latent, X), X).ok
    assert check(masked_latent, guides.auto_guide(masked_latent, X, local="AmortizedFlow"), X).ok


@pytest.mark.slow
@pytest.mark.parametrize("objective", [None, "IWAE(num_particles=4)"])
def test_fit_warns_of_the_loop_over_particles_once(objective, monkeypatch):
    monkeypatch.setattr(svi, "EVIDENCE_PARTICLES", 3)
    for _ in range(2):  # once in each fit
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            fit(looped, None, X, objective=objective, num_steps=2, validation=1, progress=False)
        texts = [str(w.message) for w in record if "one by one" in str(w.message)]
        assert len(texts) == 1
        assert "vectorize_particles" not in texts[0]
