"""Missing values: densities of the known entries, finite gradients, fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from typer.testing import CliRunner

from ppl_lvm.checks import check
from ppl_lvm.cli import app
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.models import FactorAnalysis
from ppl_lvm.programs.missing import without_missing
from ppl_lvm.runs.directory import load_run

pytestmark = pytest.mark.usefixtures("no_figures")

GAPS = torch.tensor(
    [[False, True, False], [False, False, False], [True, True, True], [True, False, False]]
)

# Likelihoods with a parameter (3,), and values (4, 3) of them.
FAMILIES: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    name: (make, lambda fn: fn.expand([4, 3]).sample())
    for name, make in {
        "Normal": lambda a: dist.Normal(a, a.exp()),
        "LogNormal": lambda a: dist.LogNormal(a, a.exp()),
        "Gamma": lambda a: dist.Gamma(a.exp(), a.exp()),
        "Beta": lambda a: dist.Beta(a.exp(), 1 + a.exp()),
        "Uniform": lambda a: dist.Uniform(-a.exp(), a.exp() + 2),
        "StudentT": lambda a: dist.StudentT(a.exp(), a, 1.0),
        "Weibull": lambda a: dist.Weibull(a.exp(), 1 + a.exp()),
        "Poisson": lambda a: dist.Poisson(a.exp()),
        "Bernoulli": lambda a: dist.Bernoulli(logits=a),
        "Binomial": lambda a: dist.Binomial(5, logits=a),
        "Categorical": lambda a: dist.Categorical(logits=torch.stack([a, 2 * a], -1)),
        "NegativeBinomial": lambda a: dist.NegativeBinomial(4.0, logits=a),
    }.items()
}


@pytest.mark.parametrize("family", FAMILIES)
def test_without_missing_has_density_and_gradient_of_the_known_entries(family: str) -> None:
    make, draw = FAMILIES[family]
    a = torch.tensor([-0.5, 0.3, 0.8], requires_grad=True)
    x = draw(make(a.detach())).float()
    fn, value = without_missing(make(a), x.where(~GAPS, torch.nan))
    log_prob = fn.to_event(1).log_prob(value)
    known = make(a).expand([4, 3]).log_prob(x)
    expected = torch.stack([row[~gap].sum() for row, gap in zip(known, GAPS, strict=True)])
    torch.testing.assert_close(log_prob, expected)
    (gradient,) = torch.autograd.grad(log_prob.sum(), a)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), a)[0])


def test_without_missing_is_the_marginal_over_a_missing_bit() -> None:
    """The marginal of two bits given z, one of them missing, as a sum over its values."""
    fn = dist.Bernoulli(torch.tensor([0.3, 0.6]))
    masked, value = without_missing(fn, torch.tensor([[1.0, torch.nan]]))
    values = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    marginal = fn.to_event(1).log_prob(values).logsumexp(0)
    torch.testing.assert_close(masked.to_event(1).log_prob(value)[0], marginal)


def test_replacement_without_mask_and_mask_without_replacement_are_wrong() -> None:
    """The wrong twins: one changes the density, the other has a gradient that is NaN."""
    a = torch.tensor(0.5, requires_grad=True)
    x = torch.tensor([1.5, torch.nan])
    right, value = without_missing(dist.Normal(a, 1.0), x)
    filled = dist.Normal(a, 1.0).expand([2]).log_prob(x.nan_to_num())
    assert not torch.allclose(right.log_prob(value).sum(), filled.sum())
    masked = dist.Normal(a, 1.0, validate_args=False).expand([2]).mask(~x.isnan())
    assert torch.autograd.grad(masked.log_prob(x).sum(), a)[0].isnan()
    torch.testing.assert_close(
        torch.autograd.grad(right.log_prob(value).sum(), a)[0], torch.tensor(1.0)
    )


def test_without_missing_refuses_events() -> None:
    with pytest.raises(ValueError, match=r"Independent: its events of shape \(3,\)"):
        without_missing(dist.Normal(torch.zeros(3), 1.0).to_event(1), torch.zeros(3))


def _counts(x: Tensor) -> None:
    """Rates of counts, some of which are missing."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        likelihood, value = without_missing(dist.LogNormal(z.sum(-1, keepdim=True), 1.0), x)
        pyro.sample("x", likelihood.to_event(1), obs=value)


def test_model_with_missing_values_passes_check_with_finite_gradients() -> None:
    x = torch.rand(20, 3).where(torch.rand(20, 3) < 0.7, torch.nan)
    guide = AmortizedNormal(_counts, x)
    assert len(check(_counts, guide, x)) == 0
    Trace_ELBO().loss_and_grads(_counts, guide, x)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in guide.parameters())


@pytest.fixture
def gaps(tmp_path: Path) -> Path:
    """A file of four columns with one cause, a fifth of its values missing."""
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 1)) @ random.normal(size=(1, 4)) + random.normal(size=(80, 4))
    x[random.random(x.shape) < 0.2] = np.nan
    lines = [",".join("" if np.isnan(v) else f"{v:.4f}" for v in row) for row in x]
    (tmp_path / "gaps.csv").write_text("\n".join(lines))
    return tmp_path / "gaps.csv"


def test_fit_to_a_file_with_missing_values_approaches_the_exact_evidence(
    gaps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["ppl_lvm.models:FactorAnalysis", "--data", "gaps.csv", "--set", "latent=1"]
    refused = CliRunner().invoke(app, ["check", *words, "--no-header"])
    assert "missing" in str(refused.exception)
    keep = ["--missing", "keep", "--no-header"]
    assert "Nothing found" in CliRunner().invoke(app, ["check", *words, *keep]).stdout
    more = ["--num-steps", "150", "--optimizer", "Adam(lr=0.03)", "--directory", "run"]
    done = CliRunner().invoke(app, ["fit", *words, *keep, *more])
    assert done.exit_code == 0, done.output
    run = load_run("run")
    x = torch.tensor(np.genfromtxt(gaps, delimiter=",")).float()
    model: Any = run.model
    assert isinstance(model, FactorAnalysis)
    exact = model.log_evidence(x).mean().item()
    bound, error = run.results["bound"], run.results["bound_monte_carlo_error"]
    assert bound - 5 * error < exact < bound + 0.25
    assert abs(run.results["log_evidence"] - exact) < 0.02
    assert np.isfinite(run.history["bound"]).all()


def test_guide_built_on_complete_rows_accepts_missing_values() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    x[50:, 1] = torch.nan
    data = load_data(x, missing="keep")
    run = fit(FactorAnalysis(1), None, data, num_steps=12, batch_size=20)
    assert np.isfinite(run.history["bound"]).all()
    assert all(value.isfinite().all() for value in run.parameters().values())
