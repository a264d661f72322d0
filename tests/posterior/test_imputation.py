"""Imputation against conditional distributions of Gaussians."""

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import MultivariateNormal, Normal
from torch import Tensor

from ppl_lvm import fit, fit_em, load_data, load_run
from ppl_lvm.authoring import without_missing
from ppl_lvm.models import PPCA, FactorAnalysis, FactorModel, GaussianMixture, MixtureOfPPCA
from tests.support.command_line import run_command

NAN = math.nan


def correlated_rows() -> Tensor:
    torch.manual_seed(3)
    centers = 2 * torch.randn(2, 4)
    return centers[torch.randint(2, (120,))] + torch.randn(120, 4) @ torch.randn(4, 4)


def with_gaps(x: Tensor) -> Tensor:
    """Six rows: complete, one, two and three values missing, another pattern, none present."""
    gaps = torch.zeros(6, 4, dtype=torch.bool)
    gaps[1, 0] = gaps[2, 1:3] = gaps[3, :3] = gaps[4, 3] = gaps[5] = True
    return x[:6].masked_fill(gaps, NAN)


def conditional(weights: Any, means: Any, S: Any, row: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the missing values of a row of a Gaussian mixture, by blocks of Σ."""
    weights, means, S = (t.detach().double() for t in (weights, means, S))
    o, row = ~row.isnan(), row.double()
    logits, centers, spreads = weights.log(), [], []
    for k in range(len(means)):
        gain = S[k][~o][:, o] @ torch.linalg.inv(S[k][o][:, o])
        centers.append(means[k][~o] + gain @ (row[o] - means[k][o]))
        spreads.append(S[k][~o][:, ~o] - gain @ S[k][o][:, ~o])
        if o.any():
            density = MultivariateNormal(means[k][o], S[k][o][:, o]).log_prob(row[o])
            logits = logits + torch.eye(len(means))[k] * density
    r, m, V = logits.softmax(0), torch.stack(centers), torch.stack(spreads)
    mean = r @ m
    second = torch.einsum("k,kpq->pq", r, V + m[:, :, None] * m[:, None])
    return mean, second - mean[:, None] * mean


def parameters_of(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    if hasattr(model, "weights"):
        return model.weights, model.means, model.covariance_matrix
    noise = model.noise.expand(len(model.W)).diag()
    return torch.ones(1), model.mu[None], (model.W @ model.W.mT + noise)[None]


MODELS = [
    *(GaussianMixture(2, covariance=c) for c in ("full", "tied", "diag", "spherical")),
    GaussianMixture(1),
    MixtureOfPPCA(2, latent=2),
    PPCA(2),
    FactorAnalysis(2),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{type(m).__name__}")
@pytest.mark.parametrize("fitted_with_gaps", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_impute_has_exact_conditional_means_and_draws(model: Any, fitted_with_gaps: bool) -> None:
    x = correlated_rows()
    rows = with_gaps(x)
    data = torch.cat([rows[:5], x[6:]]) if fitted_with_gaps else x
    run = fit_em(model, _keep(data), max_iterations=5)
    mean, draws = run.impute(rows)["x"], run.impute(rows, num_samples=300)["x"]
    assert draws.shape == (300, 6, 4)
    present = ~rows.isnan()
    assert torch.equal(mean[present], rows[present])
    assert torch.equal(draws[:, present], rows[present].expand(300, -1))
    for n in range(1, 6):
        exact, covariance = conditional(*parameters_of(run.model), rows[n])
        missing = ~present[n]
        torch.testing.assert_close(mean[n, missing].double(), exact, rtol=1e-4, atol=1e-4)
        d = draws[:, n, missing].double()
        error = (covariance.diagonal() / 300).sqrt()
        assert ((d.mean(0) - exact).abs() < 5 * error).all()
        # Standard errors of a covariance: at most √(2 v_p v_q / S) of normals, twice of mixtures.
        v = covariance.diagonal()
        bound = 10 * (2 * v[:, None] * v / 300).sqrt()
        assert ((torch.atleast_2d(d.mT.cov()) - covariance).abs() < bound).all()


def test_mean_imputation_is_no_conditional_mean() -> None:
    """The wrong twin: the column's mean in place of the conditional one."""
    x = correlated_rows()
    rows = with_gaps(x)
    run = fit_em(PPCA(2), x, max_iterations=5)
    exact, _ = conditional(*parameters_of(run.model), rows[1])
    assert abs(x[:, 0].mean() - exact[0]) > 0.1


def _keep(x: Tensor) -> Any:
    return load_data(x, missing="keep")


W, NOISE = torch.tensor([1.0, -2.0, 0.5]), 0.7


def one_factor(x: Tensor) -> None:
    pyro.param("unused", torch.zeros(()))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", Normal(torch.zeros(()), 1.0))
        likelihood, value = without_missing(Normal(z[..., None] * W, NOISE), x)
        pyro.sample("x", likelihood.to_event(1), obs=value)


def wide_guide(x: Tensor) -> None:
    """No posterior: importance weights correct it."""
    loc = pyro.param("loc", torch.tensor(0.2))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", Normal(loc, 1.5))


@pytest.mark.slow
def test_impute_weights_the_draws_of_any_guide() -> None:
    x = torch.tensor([[1.0, NAN, 0.3], [NAN, NAN, NAN], [NAN, 1.0, NAN], [0.1, 0.2, 0.3]])
    run = fit(
        one_factor, wide_guide, _keep(x), num_steps=1, optimizer="SGD(lr=0.0)", progress=False
    )
    S = (W[:, None] * W + NOISE**2 * torch.eye(3))[None]
    mean = run.impute(x)["x"]
    draws = run.impute(x, num_samples=500)["x"]
    assert draws.shape == (500, *x.shape)
    assert torch.equal(mean[3], x[3])
    for n in range(3):
        exact, covariance = conditional(torch.ones(1), torch.zeros(1, 3), S, x[n])
        # Of 1,000 resampled draws at least a third are effective.
        error = (3 * covariance.diagonal() / 1000).sqrt()
        assert ((mean[n][x[n].isnan()] - exact).abs() < 5 * error).all()


@pytest.mark.slow
def test_impute_draws_counts_for_counts() -> None:
    torch.manual_seed(0)
    x = torch.poisson(torch.full((20, 3), 4.0))
    run = fit(FactorModel(1), None, x, num_steps=20, progress=False)
    gaps = x.clone()
    gaps[0, 1] = gaps[3] = NAN
    draws = run.impute(gaps, num_samples=7)["x"]
    assert torch.equal(draws, draws.round())
    assert torch.equal(draws[:, 1], gaps[1].expand(7, 3))


def test_impute_refuses_dependent_values_by_name() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", MultivariateNormal(mu, torch.eye(2)), obs=x)

    run = fit(model, None, torch.zeros(5, 2), num_steps=1, progress=False)
    with pytest.raises(ValueError, match=r"'x' ~ MultivariateNormal depend.*impute\(x"):
        run.impute(torch.tensor([[NAN, 1.0]] * 5))
    with pytest.raises(ValueError, match="num_samples=0"):
        run.impute(torch.zeros(5, 2), num_samples=0)


@pytest.mark.slow
def test_impute_command_writes_the_columns_of_the_file(tmp_path: Any) -> None:
    x = correlated_rows()
    lines = ["a,b,c,d", *(",".join(f"{v:.6g}" for v in row) for row in x.tolist())]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    words = ("fit", "ppl_lvm.models:PPCA", "--data", "x.csv", "--objective", "em")
    assert run_command(*words, "--directory", "run", folder=tmp_path).returncode == 0
    lines[2] = lines[2].rpartition(",")[0] + ","
    (tmp_path / "gaps.csv").write_text("\n".join(lines))
    words = ("impute", "run", "--data", "gaps.csv", "--output")
    assert run_command(*words, "full.csv", folder=tmp_path).returncode == 0
    refused = run_command(*words, "full.txt", folder=tmp_path)
    assert (refused.returncode, "write a .npy" in refused.stderr) == (2, True)
    written = (tmp_path / "full.csv").read_text().splitlines()
    assert written[0] == "a,b,c,d"
    assert len(written) == len(lines)
    exact, _ = conditional(*parameters_of(load_run(tmp_path / "run").model), _row(lines[2]))
    assert float(written[2].rpartition(",")[2]) == pytest.approx(float(exact), abs=1e-4)


def _row(line: str) -> Tensor:
    return torch.tensor([float(v) if v else NAN for v in line.split(",")])
