"""Joint draws of summed-out sites; axis of the rows."""

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Beta, Categorical, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.fitting.svi import fit
from ppl_lvm.report.run_view import RunView
from ppl_lvm.runs.run import Run

ENUMERATE = {"enumerate": "parallel"}


class TwoFlags(PyroModule):
    """x_n ~ N(a_n + b_n, 0.1): x_n = 1 says that one flag is up, and not which one."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", Bernoulli(0.5), infer=ENUMERATE)
            b = pyro.sample("b", Bernoulli(0.5), infer=ENUMERATE)
            pyro.sample("x", Normal(a + b + self.shift, 0.1), obs=x)


class Chain(PyroModule):
    """A series with a hidden state that seldom changes, and says little about its state."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.0, 0.1]))

    def forward(self, x: Tensor) -> None:
        step = torch.tensor([[0.98, 0.02], [0.02, 0.98]])
        with pyro.plate("data", len(x), dim=-1):
            s: Any = None
            for t in pyro.markov(range(x.shape[1])):
                p = torch.ones(2) / 2 if s is None else step[s]
                s = pyro.sample(f"s{t}", Categorical(p), infer=ENUMERATE)
                pyro.sample(f"x{t}", Normal(self.mean[s], 1.0), obs=x[:, t])


class ChangePoint(PyroModule):
    """A global site outside of the plate: the row where the mean changes."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.0, 3.0]))

    def forward(self, x: Tensor) -> None:
        tau = pyro.sample("tau", Categorical(torch.ones(20) / 20), infer=ENUMERATE)
        with pyro.plate("data", len(x), dim=-1):
            mean = torch.where(torch.arange(len(x)) < tau, self.mean[0], self.mean[1])
            pyro.sample("x", Normal(mean, 1.0), obs=x)


class Weighted(PyroModule):
    """A global share w and two flags of each row with this share."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        w = pyro.sample("w", Beta(1.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", Bernoulli(w), infer=ENUMERATE)
            b = pyro.sample("b", Bernoulli(1 - w), infer=ENUMERATE)
            pyro.sample("x", Normal(a + b + self.shift, 0.1), obs=x)


def uniform_share(x: Tensor) -> None:
    pyro.sample("w", Beta(pyro.param("alpha", torch.tensor(1.0)), 1.0))


def unfitted(model: Any, guide: Any, x: Tensor) -> Run:
    return fit(model, guide, x, num_steps=1, optimizer="SGD(lr=0.0)", progress=False)


def nothing(x: Tensor) -> None:
    """A guide that leaves every latent to the sum."""


@pytest.mark.parametrize("rows", [1, 4])
def test_flags_of_one_row_are_drawn_together(rows: int) -> None:
    x = torch.ones(rows)
    data = unfitted(TwoFlags(), nothing, x).to_arviz(x, num_samples=400)
    a, b = (data.posterior[name].values[0] for name in ("a", "b"))
    assert (a + b == 1).all()
    assert a.mean(0) == pytest.approx(0.5, abs=5 * 0.5 / 400**0.5)
    predicted = data.posterior_predictive["x"].values
    assert predicted.std() == pytest.approx(0.1, abs=5 * 0.1 / (2 * predicted.size) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
def test_states_of_a_markov_chain_are_drawn_as_paths(rows: int) -> None:
    x = 0.05 * torch.ones(rows, 12)  # halfway between the states: no evidence for a change
    run = unfitted(Chain(), nothing, x)
    data = run.to_arviz(x, num_samples=300)
    s = np.stack([data.posterior[f"s{t}"].values[0] for t in range(12)])
    switches = (s[1:] != s[:-1]).mean()
    assert switches == pytest.approx(0.02, abs=5 * (0.02 * 0.98 / (11 * 300 * rows)) ** 0.5)
    assert run.encode(x)["s3"].shape == (rows, 2)
    assert torch.isfinite(run.log_evidence(x).per_row).all()
    assert run.sample(1)["x3"].shape == (1,)


def test_flags_are_drawn_given_the_global_latent_of_the_same_draw() -> None:
    x = torch.ones(3)
    data = unfitted(Weighted(), uniform_share, x).to_arviz(x, num_samples=2000)
    w, a, b = (data.posterior[name].values[0] for name in ("w", "a", "b"))
    assert (a + b == 1).all()
    p = w**2 / (w**2 + (1 - w) ** 2)  # p(a = 1 | a + b = 1, w)
    residual = a.mean(1) - p
    error = float(5 * (p * (1 - p) / 3).mean() ** 0.5 / 2000**0.5)
    assert residual.mean() == pytest.approx(0.0, abs=error)
    assert (residual * (w - 0.5)).mean() == pytest.approx(0.0, abs=error)


def test_change_point_is_drawn_from_its_posterior_in_draws_samples_and_replicates() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.zeros(8), torch.full((12,), 3.0)])
    run = unfitted(ChangePoint(), nothing, x)
    drawn = run.to_arviz(x, num_samples=400).posterior["tau"].values[0]
    share = np.bincount(drawn, minlength=20) / 400
    p = run.encode(x)["tau"].numpy()
    assert share == pytest.approx(p, abs=5 * 0.5 / 400**0.5)
    samples = [int(run.sample(20, seed=seed)["tau"]) for seed in range(20)]
    assert np.abs(np.array(samples) - 8).max() <= 2
    # Replicated data: the mean of row 0 is 0, and not 3 as for most change points of the prior.
    from ppl_lvm.diagnostics.predictive_checks import predictive_check

    check = predictive_check(run.model, run.guide, x, num_replicates=199)
    assert 0.02 < check.pit["x"].mean() < 0.98
    assert check.pit["x"][1:3] == pytest.approx(0.5, abs=0.2)
    assert check.pit["x"][-3:] == pytest.approx(0.5, abs=0.2)


def test_picture_of_decoded_rows_takes_jointly_possible_states() -> None:
    x = torch.ones(5)
    run = unfitted(TwoFlags(), nothing, x)
    view = RunView(run, run.data, (x,))  # type: ignore[arg-type]  # the data are not read
    assert torch.allclose(view.decoded["x"], x)


def test_decoding_sums_out_the_sites_without_a_code() -> None:
    x = torch.ones(5)
    run = unfitted(TwoFlags(), nothing, x)
    a = torch.tensor([0.0, 1.0, 1.0])
    assert torch.allclose(run.decode({"a": a})["x"], a + 0.5)
    assert torch.allclose(run.decode({"a": a, "b": a})["x"], 2 * a)
    with pytest.raises(ValueError, match="Pass states"):
        run.decode(run.encode(x))


@pytest.mark.parametrize("guide_first", [False, True])
def test_resampled_draws_choose_rows_by_their_plate_and_not_by_its_size(guide_first: bool) -> None:
    """z_mn ~ N(0, 1), x_nm ~ N(z_mn, 1) in plates of equal size; q is the prior."""

    def model(x: Tensor) -> None:
        with pyro.plate("features", 4, dim=-2), pyro.plate("data", 4, dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x.T)

    def transposed(x: Tensor) -> None:
        with pyro.plate("data", 4, dim=-2), pyro.plate("features", 4, dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        m = pyro.param("m", torch.tensor(0.0))
        dims = (-2, -1) if guide_first else (-1, -2)
        with pyro.plate("data", 4, dim=dims[0]), pyro.plate("features", 4, dim=dims[1]):
            pyro.sample("z", Normal(m, 1.0))

    x = torch.arange(16.0).reshape(4, 4) / 8 - 1
    run = unfitted(transposed if guide_first else model, guide, x)
    data = run.to_arviz(x, num_samples=4000, draws="resampled")
    mean = data.posterior["z"].values[0].mean(0)
    exact = x.numpy() / 2 if guide_first else x.T.numpy() / 2
    # Weights of four values each: an ESS of at least a tenth.
    assert mean == pytest.approx(exact, abs=5 * 0.5**0.5 / 400**0.5)


def test_resampled_draws_of_an_event_as_long_as_the_data_have_the_posterior_mean() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        m = pyro.param("m", torch.tensor(0.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(m * torch.ones(3), 1.0).to_event(1))

    x = torch.arange(9.0).reshape(3, 3) / 4 - 1
    data = unfitted(model, guide, x).to_arviz(x, num_samples=4000, draws="resampled")
    mean = data.posterior["z"].values[0].mean(0)
    assert mean == pytest.approx(x.numpy() / 2, abs=5 * 0.5**0.5 / 400**0.5)


def test_one_row_has_the_codes_and_the_evidence_that_it_has_among_others() -> None:
    x = torch.tensor([1.0, 0.1, 1.9])
    run = unfitted(TwoFlags(), nothing, x)
    for name, codes in run.encode(x).items():
        assert torch.allclose(run.encode(x[:1])[name], codes[:1], atol=1e-6)
    assert run.log_evidence(x[:1]).value == pytest.approx(float(run.log_evidence(x).per_row[0]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Particles run one by one")
def test_programs_that_reject_a_particle_plate_have_joint_draws() -> None:
    class IndexedFromTheLeft(PyroModule):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", Normal(torch.zeros(2), 0.1).to_event(1))
                a = pyro.sample("a", Bernoulli(0.5), infer=ENUMERATE)
                b = pyro.sample("b", Bernoulli(0.5), infer=ENUMERATE)
                pyro.sample("x", Normal(a + b + z[: len(x), 0], 0.1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(pyro.param("m", torch.zeros(2)), 0.1).to_event(1))

    x = torch.ones(3)
    data = unfitted(IndexedFromTheLeft(), guide, x).to_arviz(x, num_samples=50)
    assert (data.posterior["a"].values + data.posterior["b"].values == 1).all()
