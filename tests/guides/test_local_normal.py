"""LocalNormal against the closed-form optimum of a linear Gaussian model."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor

from ppl_lvm.checks import check
from ppl_lvm.compiler import CannotCaptureError
from ppl_lvm.core.storage import load_checkpoint
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import LocalNormal
from ppl_lvm.models import PPCA
from ppl_lvm.models.parts.factors import linear_gaussian
from ppl_lvm.programs.row_state import ProvideBatchRows, RowTables
from ppl_lvm.training.step_runner import StepRunner

pytestmark = pytest.mark.usefixtures("no_figures")


def _optimum(model: PPCA, x: Tensor) -> Tensor:
    """λ of the closest diagonal normal to N(m, Λ⁻¹): μ = m, σ_i² = 1 / Λ_ii."""
    mean, L = linear_gaussian.posterior(model._theta(), x)
    precision = (L @ L.mT).diagonal(dim1=-2, dim2=-1)
    return torch.cat([mean, -0.5 * precision.log()], -1).detach()


def _svi(model: Any, guide: LocalNormal, lr: float) -> Any:
    """A small `lr` changes θ slightly, so that consecutive steps differ."""
    return SVI(model, guide, Adam({"lr": lr}), Trace_ELBO())


def _rows(guide: LocalNormal) -> Tensor:
    assert guide.row_table.size is not None
    return guide.rows(torch.arange(guide.row_table.size))


def test_local_normal_reaches_every_rows_optimum_under_plain_svi() -> None:
    x = torch.randn(20, 5).double()
    model = PPCA(2, 5).double()
    guide = LocalNormal(model, x)
    svi = _svi(model, guide, 1e-7)
    for _ in range(20):
        svi.step(x)
    torch.testing.assert_close(_rows(guide), _optimum(model, x), atol=1e-5, rtol=0)


def test_local_normal_changes_only_the_rows_of_the_batch() -> None:
    x = torch.randn(12, 5)
    model = PPCA(2, 5)
    guide = LocalNormal(model, x[:3])
    svi = _svi(model, guide, 0.01)
    with ProvideBatchRows(torch.arange(12), num_rows=12):
        svi.step(x)
    before, state = _rows(guide).clone(), guide.row_table.read(torch.arange(12)).clone()
    assert before.abs().sum(-1).min() > 0
    rows = torch.tensor([7, 2, 11])
    with ProvideBatchRows(rows, num_rows=12):
        svi.step(x[rows])
    others = torch.tensor([n for n in range(12) if n not in rows])
    assert torch.equal(guide.row_table.read(others), state[others])  # λ and α, bit for bit
    assert (_rows(guide)[rows] != before[rows]).any(-1).all()


def test_local_normal_accesses_as_many_rows_for_ten_million_rows() -> None:
    """Counted in rows accessed; the table is a sparse memory-mapped file."""
    accessed = []
    for size in (100, 10_000_000):
        model = PPCA(1, 2)
        guide = LocalNormal(model, torch.randn(4, 2))
        svi = _svi(model, guide, 0.01)
        for step in range(2):
            rows = torch.tensor([0, 3, size // 2, size - 1 - step])
            with ProvideBatchRows(rows, num_rows=size):
                svi.step(torch.randn(4, 2))
        accessed.append(guide.row_table.rows_accessed)
    assert accessed == [2 * 2 * 4] * 2


@pytest.mark.filterwarnings("ignore:model.*will not find this model")
@pytest.mark.slow
def test_local_normal_fits_ten_million_rows_of_a_file(tmp_path: Path) -> None:
    shape = (10_000_000, 1)
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape).flush()

    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.ones(1))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * w, 0.5).to_event(1), obs=x)

    run = fit(
        model,
        LocalNormal,
        str(tmp_path / "x.npy"),
        batch_size=64,
        num_steps=2,
        directory=tmp_path / "run",
    )
    guide: Any = run.guide
    assert guide.row_table.size == 10_000_000
    assert (tmp_path / "run" / "checkpoint.rows").stat().st_size == 10_000_000 * 3 * 4


def test_local_normal_takes_its_steps_once_at_every_theta() -> None:
    """Several particles, and a second score of the same draws, have the same λ."""
    x = torch.randn(6, 5)
    model = PPCA(2, 5)
    guide = LocalNormal(model, x)
    with ProvideBatchRows(torch.arange(6), num_rows=6):
        first = poutine.trace(guide).get_trace(x).nodes["z"]["fn"].mean
        second = poutine.trace(guide).get_trace(x).nodes["z"]["fn"].mean
        with torch.no_grad():
            model.W = model.W + 0.1
        third = poutine.trace(guide).get_trace(x).nodes["z"]["fn"].mean
    assert torch.equal(first, second)
    assert not torch.equal(second, third)


@pytest.mark.slow
def test_local_normal_fits_new_rows_at_the_current_parameters() -> None:
    x, new = torch.randn(30, 5), torch.randn(9, 5)
    run = fit(PPCA(2, 5), LocalNormal, x, batch_size=10, num_steps=30, validation=new)
    model: Any = run.model
    exact = _optimum(model, new)[:, :2]
    torch.testing.assert_close(run.encode(new)["z"], exact, atol=2e-3, rtol=0)
    gap = float(model.log_evidence(new).mean().detach()) - run.results["held_out"]
    assert -0.1 < gap < 0.5  # gap of the diagonal family, and Monte Carlo error


def test_local_normal_uses_the_subsample_of_a_plate() -> None:
    subsamples: list[Tensor] = []

    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor([1.0, 0.5]))
        with pyro.plate("data", len(x), subsample_size=4, dim=-1) as rows:
            subsamples.append(rows)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * w, 0.5).to_event(1), obs=x[rows])

    x = torch.randn(10, 2)
    guide = LocalNormal(model, x, inner_steps=5, draws=2)  # exact for a scalar
    assert len(check(model, guide, x)) == 0
    svi, all_rows = _svi(model, guide, 1e-6), set()
    for _ in range(12):
        before = torch.zeros(10, 2) if guide.row_table.size is None else _rows(guide)
        subsamples.clear()
        svi.step(x)
        assert all(
            torch.equal(rows, subsamples[0]) for rows in subsamples
        )  # in the guide and outside
        rows = set(subsamples[0].tolist())
        changed = set((_rows(guide) != before).any(-1).nonzero()[:, 0].tolist())
        assert rows - all_rows <= changed <= rows
        all_rows |= rows
    assert len(all_rows) == 10
    w = torch.tensor([1.0, 0.5])
    precision = 1 + w.square().sum() / 0.25
    exact = torch.stack([x @ w / 0.25 / precision, (-0.5 * precision.log()).expand(10)], -1)
    torch.testing.assert_close(_rows(guide), exact, atol=1e-2, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["after the checkpoint", "within a step"])
def test_killed_run_with_a_row_table_resumes_bit_for_bit(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(23, 4)
    torch.manual_seed(1)
    model = PPCA(2, 4)

    def run(directory: Path, resume: bool = False) -> None:
        fit(
            model,
            LocalNormal,
            x,
            batch_size=5,
            num_steps=12,
            checkpoint_seconds=0,
            directory=directory,
            resume=resume,
            engine="eager",
        )

    run(tmp_path / "complete")
    calls = []
    owner, name = (
        (RowTables, "commit") if moment == "after the checkpoint" else (StepRunner, "step")
    )
    original = getattr(owner, name)

    def dies(self: Any, *args: Any) -> Any:
        calls.append(None)
        result = original(self, *args) if name == "step" else None
        if len(calls) == 7:
            raise KeyboardInterrupt
        return original(self, *args) if name == "commit" else result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    run(tmp_path / "killed", resume=True)
    rows = [(tmp_path / n / "checkpoint.rows").read_bytes() for n in ("complete", "killed")]
    assert rows[0] == rows[1]
    states = [
        load_checkpoint(tmp_path / n / "checkpoint.safetensors")[0] for n in ("complete", "killed")
    ]
    for name in states[0]:
        if not name.startswith("tables/"):
            assert torch.equal(states[0][name].nan_to_num(), states[1][name].nan_to_num()), name


def _family(x: Tensor) -> None:
    """w ~ N(0, 5²) and s > 0 are global, z_n ~ N(w, 1), x_n ~ N(z_n, s²)."""
    w = pyro.sample("w", dist.Normal(0.0, 5.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 0.1))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, s), obs=x)


@pytest.mark.slow
def test_local_normal_adds_a_guide_for_global_latents() -> None:
    """z_n is fitted at the center of q(w) q(s): μ = (w + x / s²) / (1 + 1 / s²), and so on."""
    x = 3 + torch.randn(30)
    guide = LocalNormal(_family, x, draws=2)
    assert len(check(_family, guide, x)) == 0
    svi = _svi(_family, guide, 0.04)
    for _ in range(80):
        svi.step(x)
    w = float(guide.shared.w_loc.detach())  # type: ignore[union-attr]
    assert w == pytest.approx(float(x.mean()), abs=0.6)
    guide.eval()
    node = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    precision = 1 + (-2 * guide.shared.s_loc.detach()).exp()  # type: ignore[union-attr]
    exact = (w + x * (precision - 1)) / precision
    torch.testing.assert_close(node.mean, exact, atol=1e-3, rtol=0)
    torch.testing.assert_close(node.variance, (1 / precision).expand(30), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_local_normal_fits_global_latents_by_mini_batches() -> None:
    x = 3 + torch.randn(30)
    run = fit(_family, LocalNormal, x, batch_size=10, num_steps=4)
    assert run.encode(x)["z"].shape == (30,)
    assert run.sample(4)["x"].shape == (4,)


def test_local_normal_refuses_a_batch_of_unknown_rows() -> None:
    x = torch.randn(8, 5)
    model = PPCA(2, 5)
    guide = LocalNormal(model, x)
    svi = _svi(model, guide, 0.01)
    svi.step(x)
    for other in (x[:4], x.flip(0)):
        with pytest.raises(ValueError, match=r"not the rows of its first call.*ProvideBatchRows"):
            svi.step(other)
    guide.eval()
    assert poutine.trace(guide).get_trace(x[:4]).nodes["z"]["value"].shape == (4, 2)


def test_check_leaves_the_row_table_unchanged() -> None:
    x = torch.randn(8, 5)
    model = PPCA(2, 5)
    guide = LocalNormal(model, x)
    assert len(check(model, guide, x)) == 0
    assert guide.row_table.size is None


@pytest.mark.slow
def test_step_of_local_normal_cannot_be_captured() -> None:
    x = torch.randn(8, 5)
    with pytest.raises(CannotCaptureError, match="table of rows"):
        fit(PPCA(2, 5), LocalNormal, x, num_steps=3, engine="captured")
    run = fit(PPCA(2, 5), LocalNormal, x, num_steps=3)
    assert run.results["engine"] == "eager"


def test_local_normal_refuses_global_latents_alone_and_zero_steps() -> None:
    def shared(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(w, 1.0).expand([len(x)]), obs=x)

    with pytest.raises(ValueError, match="LocalNormal: there is no continuous latent to serve"):
        LocalNormal(shared, torch.randn(3))
    with pytest.raises(ValueError, match="inner_steps=0 is too small"):
        LocalNormal(shared, torch.randn(3), inner_steps=0)
