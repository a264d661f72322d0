"""Recall and precision against distribution functions and quadrature."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal
from typer.testing import CliRunner

from ppl_lvm.cli import app
from ppl_lvm.divergences import (
    ChiSquare,
    CoverageResults,
    EnergyDistance,
    ForwardKL,
    RenyiDivergence,
    ReverseKL,
    Target,
    as_target,
    fit_all,
)
from ppl_lvm.divergences.example_densities import bimodal, four_modes
from ppl_lvm.divergences.mass_coverage import DRAWS, shares
from ppl_lvm.models.gaussian import Gaussian
from ppl_lvm.report.figures.divergences import coverage_figure

ERROR = 5 * math.sqrt(2 * 0.25 / DRAWS)  # bound for a share whose threshold is estimated too


def _sampled(target: Any) -> tuple[Target, Tensor]:
    p = as_target(target)
    torch.manual_seed(0)
    assert p.draw is not None
    return p, p.draw(DRAWS)


def _exact(mean: float, sd: float, within: float = 0.95) -> tuple[float, float]:
    """Recall and precision of N(mean, sd²) for `bimodal`, by quadrature."""
    q, reach = Normal(mean, sd), Normal(0.0, 1.0).icdf(torch.tensor((1 + within) / 2)).item()
    modes = [(0.35, Normal(-2.5, 0.6)), (0.65, Normal(2.0, 0.9))]
    edges = torch.tensor([mean - reach * sd, mean + reach * sd])
    recall = sum(w * float(mode.cdf(edges).diff()) for w, mode in modes)
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    density = bimodal().log_prob(x[:, None]).exp() * (x[1] - x[0])
    densest = density.sort(descending=True)
    last = int((densest.values.cumsum(0) < within).sum())
    region = density >= densest.values[last]
    precision = float((q.log_prob(x).exp() * (x[1] - x[0]))[region].sum())
    return recall, precision


@pytest.mark.parametrize(("mean", "sd"), [(2.0, 0.9), (0.4, 2.3), (-2.5, 0.3)])
def test_shares_match_distribution_functions(mean: float, sd: float) -> None:
    p, x = _sampled(bimodal())
    estimates = shares(p, Gaussian(1, center=mean, scale=sd), x)
    assert estimates == pytest.approx(_exact(mean, sd), abs=ERROR)
    assert estimates != pytest.approx(_exact(mean, sd, within=0.68), abs=ERROR)  # a wrong twin


def test_family_equal_to_target_has_95_percent_recall_and_precision() -> None:
    target = Gaussian(2, center=1.0, scale=0.7)
    p, x = _sampled(target.density())
    assert shares(p, target, x) == pytest.approx((0.95, 0.95), abs=ERROR)
    rows, _ = _sampled(Target(draw=p.draw))
    assert shares(rows, target, x)[1] is None


pytestmark = pytest.mark.xdist_group("covering")  # one worker runs the fits below once


@pytest.fixture(scope="module")
def mode_fits() -> CoverageResults:
    starts = {"left": Gaussian(1, center=-2.0), "right": Gaussian(1, center=2.0)}
    return fit_all(bimodal(), starts, [ForwardKL(), ReverseKL()], num_steps=400)


@pytest.mark.slow
def test_forward_kl_covers_mass_and_reverse_kl_seeks_modes(mode_fits: CoverageResults) -> None:
    """One mode of weight w costs -log w in reverse KL; forward KL matches two moments."""
    forward, _, left, right = mode_fits.rows
    assert left.value == pytest.approx(-math.log(0.35), abs=0.01)
    assert right.value == pytest.approx(-math.log(0.65), abs=0.01)
    mean, square = bimodal().mean.item(), bimodal().variance.item()
    assert (forward.recall, forward.precision) == pytest.approx(
        _exact(mean, math.sqrt(square)), abs=ERROR
    )
    for row in (left, right):
        assert row.recall is not None
        assert row.precision is not None
        assert row.recall < 0.7 < 0.9 < row.precision


def test_table_json_and_figure_agree(mode_fits: CoverageResults) -> None:
    text, rows = str(mode_fits), mode_fits.to_json()
    assert [row["divergence"] for row in rows] == ["ForwardKL"] * 2 + ["ReverseKL"] * 2
    for row in rows:
        assert f"{row['value']:.4f}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "sums over a grid" in text
    assert text.splitlines()[0].split() == ["divergence", "start", "value", "recall", "precision"]
    figure = coverage_figure(mode_fits)
    assert isinstance(figure, Figure)
    assert [a.get_title() for a in figure.axes if a.get_visible()] == ["ForwardKL", "ReverseKL"]
    assert [len(a.lines) for a in figure.axes] == [2, 2]


def test_fit_all_omits_unsupported_divergences_and_reports_failures() -> None:
    x = torch.randn(50, 2) + 40.0
    results = fit_all(
        x, {"": Gaussian(2)}, [ForwardKL(), ReverseKL(), EnergyDistance()], num_steps=2
    )
    assert results.left_out == {"ReverseKL": "density"}
    assert [row.precision for row in results.rows] == [None, None]
    assert "they need more of the target: ReverseKL (density)" in results.note
    assert len(coverage_figure(results).axes) == 2
    far = Gaussian(1, center=40.0, scale=0.01).density()
    (row,) = fit_all(far, {"": Gaussian(1)}, [ChiSquare()], num_steps=2).rows
    assert row.recall is None
    assert row.failed is not None
    assert "too far apart" in row.failed
    with pytest.raises(ValueError, match="Renyi needs the target's density"):
        fit_all(x, {"": Gaussian(2)}, [RenyiDivergence(0.2)])
    with pytest.raises(ValueError, match=r"rows of shape \(2,\), Gaussian has rows of shape"):
        fit_all(four_modes(), {"": Gaussian(1)}, [ForwardKL()])
    with pytest.raises(ValueError, match="needs a target with samples"):
        fit_all(Target(bimodal().log_prob), {"": Gaussian(1)}, [ReverseKL()])


TARGET = """
import torch
from torch.distributions import Independent, Normal

def target():
    return Independent(Normal(torch.zeros(2), 1.0), 1)
"""


def test_divergences_command_fits_densities_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(TARGET)
    words = ["divergences", "mine.py:target", "--num-steps", "3", "--start", "center=1"]
    words += ["--start", "center=-1", "--divergence", "Renyi(alpha=0.2)", "--divergence", "MMD"]
    result = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    rows = json.loads(result.stdout.splitlines()[-1])
    assert [(row["divergence"], row["start"]) for row in rows] == [
        ("Renyi(alpha=0.2)", "center=1"),
        ("Renyi(alpha=0.2)", "center=-1"),
        ("MMD(bandwidths=(1.0,))", "center=1"),
        ("MMD(bandwidths=(1.0,))", "center=-1"),
    ]
    place = Path("runs/divergences-target-1")
    assert json.loads((place / "divergences.json").read_text()) == rows
    assert (place / "divergences.png").stat().st_size > 1000
    Path("x.csv").write_text("a,b\n" + "\n".join(f"{i / 10},{i % 7}" for i in range(30)))
    flow = ["--family", "ppl_lvm.models.normalizing_flow:NormalizingFlow", "--num-steps", "2"]
    flow += ["--set", "layers=2", "--data", "x.csv", "--divergence", "Energy"]
    output = CliRunner().invoke(app, ["divergences", *flow], catch_exceptions=False).stdout
    assert "Energy" in output
    assert "runs/divergences-x-1" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give one target"),
        (["bimodal", "--data", "iris"], "Give one target"),
        (["three_modes"], "Unknown density 'three_modes'. Available: bimodal, four_modes."),
        (
            ["bimodal", "--divergence", "KL"],
            "Unknown divergence 'KL'. Available: ChiSquare, Energy, Fo",
        ),
        (["bimodal", "--start", "centre=2"], "Did you mean center"),
        (["bimodal", "--family", "ppl_lvm.models:PPCA"], r"has no density\(\)"),
    ],
)
def test_divergences_command_explains_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, ["divergences", *words], catch_exceptions=False)
