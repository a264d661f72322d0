"""Fits of programs with any plate over rows."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, MultivariateNormal, Normal, constraints
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm import check, fit
from ppl_lvm.core import distributed

N = 20
X = torch.randn(N, generator=torch.Generator().manual_seed(1)) + 1


def pair(
    plate: str, guide_plate: str | None = None, dim: int = -1, stated: int | None = None
) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """μ ~ N(0, 1), z_n ~ N(μ, 1), x_n ~ N(z_n, 1)."""

    def rows(name: str, x: Tensor) -> Any:
        return pyro.plate(name, stated or len(x), subsample=torch.arange(len(x)), dim=dim)

    def placed(x: Tensor) -> Tensor:
        return x.reshape(-1, *[1] * (-dim - 1))

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(0.0, 1.0))
        with rows(plate, x):
            z = pyro.sample("z", Normal(mu, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=placed(x))

    def guide(x: Tensor) -> None:
        loc, slope = pyro.param("loc", torch.tensor(0.0)), pyro.param("slope", torch.tensor(0.5))
        pyro.sample("mu", Normal(loc, 0.3))
        with rows(guide_plate or plate, x):
            pyro.sample("z", Normal(slope * placed(x), 0.7))

    return model, guide


def numbers(programs: Any, **options: Any) -> tuple[list[float], Tensor]:
    """Bounds, evidence and sums of the exports of a fit, and its codes."""
    pyro.clear_param_store()
    assert check(*programs, X).codes == []
    run = fit(*programs, X, num_steps=4, validation=0.25, seed=3, progress=False, **options)
    data = run.to_arviz(X[:6], num_samples=5)
    results = [run.results[name] for name in ("bound", "held_out", "log_evidence")]
    results += run.history["validation_bound"]
    results += [run.log_evidence(X[:15], num_particles=20).value]
    results += [float(data.log_likelihood["x"].sum()), float(data.posterior["z"].sum())]
    return results, run.encode(X[:6])["z"].reshape(-1)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"batch_size": 5}], ids=["all rows", "mini-batches"])
def test_fit_has_the_same_numbers_for_every_name_and_dim_of_the_row_plate(
    options: dict[str, Any],
) -> None:
    expected, codes = numbers(pair("data"), **options)
    for programs in (pair("cells"), pair("sample"), pair("cells", "batch"), pair("cells", dim=-2)):
        values, others = numbers(programs, **options)
        assert values == pytest.approx(expected, rel=1e-5)
        assert torch.allclose(others, codes, atol=1e-5)


@pytest.mark.slow
def test_fit_takes_the_number_of_rows_that_a_plate_states() -> None:
    expected, codes = numbers(pair("data"), batch_size=5)
    values, others = numbers(pair("cells", stated=15), batch_size=5)
    assert values == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(others, codes, atol=1e-5)


def test_held_out_bound_of_a_plate_by_another_name_is_that_of_the_held_out_rows() -> None:
    """log p(x_n) = N(x_n; 0, √2) exactly, in nats per held-out row."""

    def model(x: Tensor) -> None:
        with pyro.plate("obs_plate", len(x)):
            scale = pyro.param("scale", torch.tensor(math.sqrt(2)), constraint=constraints.positive)
            pyro.sample("x", Normal(0.0, scale), obs=x)

    held_out = X[12:]
    run = fit(
        model,
        lambda x: None,
        X[:12],
        validation=held_out,
        num_steps=1,
        optimizer="SGD(lr=1e-9)",
        progress=False,
    )
    expected = Normal(0.0, math.sqrt(2)).log_prob(held_out).mean()
    assert run.results["held_out"] == pytest.approx(float(expected), rel=1e-5)


def random_walk(x: Tensor) -> None:
    """h_t = h_t-1 + N(0, 1), x_t ~ N(h_t, 1), as one event of all steps."""
    steps = pyro.sample("h", Normal(0.0, 1.0).expand([len(x)]).to_event(1))
    pyro.sample("x", Normal(steps.cumsum(-1), 1.0).to_event(1), obs=x)


@pytest.mark.slow
def test_fit_of_a_latent_of_all_rows_together_has_their_joint_evidence() -> None:
    run = fit(random_walk, None, X, num_steps=300, optimizer="Adam(lr=0.03)", progress=False)
    ones = torch.ones(N, N).tril()
    exact = MultivariateNormal(torch.zeros(N), ones @ ones.T + torch.eye(N)).log_prob(X) / N
    assert run.results["bound"] <= float(exact) + 5 * run.restarts[0]["bound_monte_carlo_error"]
    assert run.results["bound"] > float(exact) - 1
    with pytest.warns(UserWarning, match="no log_likelihood"):
        data = run.to_arviz(X, num_samples=4)
    assert data.posterior["h"].shape == (1, 4, N)


def test_latent_of_all_rows_together_is_refused_by_name_where_rows_are_separate() -> None:
    with pytest.raises(ValueError, match="validation: 'h' holds all rows together"):
        fit(random_walk, None, X, num_steps=2, validation=0.2, progress=False)
    with pytest.raises(ValueError, match="batch of 5 of 20 rows"):
        fit(random_walk, None, X, num_steps=2, batch_size=5, progress=False)
    run = fit(random_walk, None, X, num_steps=2, progress=False)
    with pytest.raises(ValueError, match="encode: 'h' holds all training rows together"):
        run.encode(X)
    with pytest.raises(ValueError, match="log_evidence: 'h' holds all rows together"):
        run.log_evidence(X[:7])


def test_held_out_bound_of_rows_as_one_event_is_in_nats_per_held_out_row() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("x", Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)

    run = fit(
        model,
        lambda x: None,
        X[:15],
        validation=X[15:],
        num_steps=1,
        optimizer="SGD(lr=1e-9)",
        progress=False,
    )
    expected = Normal(0.0, 1.0).log_prob(X[15:]).mean()
    assert run.results["held_out"] == pytest.approx(float(expected), rel=1e-5)


def test_warnings_of_a_pair_are_shown_without_a_progress_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def model(x: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 1.0))
        pyro.param("idle", torch.zeros(2))
        with pyro.plate("cells", len(x)):
            pyro.sample("x", Normal(m, 1.0), obs=x)

    fit(model, None, X, num_steps=1, progress=False)
    assert "idle" in capsys.readouterr().err


class Features(PyroModule):
    """Latents of shape (features, rows): the rows in the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("features", 3, dim=-2), pyro.plate("cells", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            k = pyro.sample("k", Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(z * self.scale + k, 0.1), obs=x.mT)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("features", 3, dim=-2), pyro.plate("cells", len(x), dim=-1):
            pyro.sample("z", Normal(x.mT, 0.1))


def test_codes_and_means_have_rows_first_where_the_plate_over_rows_is_last() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    model = Features()
    run = fit(model, model.guide, x, num_steps=1, progress=False, optimizer="SGD(lr=0.0)")
    codes = run.encode(x)
    assert codes["z"].shape == (5, 3)
    torch.testing.assert_close(codes["z"], x)
    assert codes["k"].shape == (5, 3, 2)
    decoded = run.decode({"z": codes["z"], "k": torch.ones(5, 3)}, x)
    torch.testing.assert_close(decoded["x"], x + 1.0)
    assert {name: value.shape for name, value in run.sample(4).items()} == dict.fromkeys(
        ("z", "k", "x"), (4, 3)
    )


def test_undecided_row_plate_is_warned_of() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("cells", 4, dim=-2), pyro.plate("genes", 4, dim=-1):
            pyro.sample("z", Normal(0.0, 1.0))
        pyro.factor("x", x.sum() * torch.ones(()))

    issues = check(model, None, torch.zeros(4, 4))
    (issue,) = [i for i in issues if i.code == "undecided-row-plate"]
    assert issue.severity == "warning"
    assert "'cells' and 'genes'" in issue.message
    assert "pyro.plate('data', len(x))" in issue.remedy


def test_several_processes_are_refused_where_a_latent_holds_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def walk(x: Tensor) -> None:
        z = pyro.sample("z", Normal(torch.zeros(len(x)), 1.0).to_event(1))
        pyro.sample("x", Normal(z, 1.0).to_event(1), obs=x)

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"'z' holds all rows together.*one process"):
        fit(walk, None, torch.zeros(6), num_steps=1, progress=False)
