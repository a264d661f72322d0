"""Comparison of runs against closed forms."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Categorical, Normal, Poisson
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.fitting.svi import fit
from ppl_lvm.models.parts.bag_of_words import BagOfWords
from ppl_lvm.report.figures.comparison import comparison_figure
from ppl_lvm.runs.comparability import NotComparableError
from ppl_lvm.runs.comparison import Comparison, Score, compare
from ppl_lvm.runs.run import Run
from small_programs import Mean, MeanGuide


class Local(PyroModule):
    """z_n ~ N(0, 1), x_n ~ N(z_n, noise²), so p(x) = N(0, 1 + noise²)."""

    def __init__(self, noise: float = 1.0) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, self.noise), obs=x)


class LocalGuide(PyroModule):
    """The posterior, its sd times `width`."""

    def __init__(self, noise: float = 1.0, width: float = 1.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1 / (1 + noise**2)))
        self.sd = width * noise / math.sqrt(1 + noise**2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.a * x, self.sd))


def posterior(total: float) -> MeanGuide:
    """The posterior of `Mean` after 30 rows whose sum is `total`."""
    return MeanGuide(total / 31, 31**-0.5)


class Two(PyroModule):
    """Mixture of components at ± m, summed out."""

    def __init__(self, m: float = 1.0) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor([-m, m]))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(self.m[z], 1.0), obs=x)


def no_guide(x: Tensor) -> None:
    pass


def unchanged(model: Any, guide: Any, x: Any, **more: Any) -> Run:
    """A run whose parameters keep their initial values."""
    return fit(model, guide, x, num_steps=1, optimizer="SGD(lr=0.0)", **more)


def normal(x: Tensor, mean: Any, variance: float) -> Any:
    return torch.distributions.Normal(mean, variance**0.5).log_prob(x).double().numpy()


def test_compare_values_and_paired_errors_equal_closed_forms() -> None:
    x, y = torch.randn(50), 1.4 * torch.randn(400)
    runs = [
        unchanged(Local(1.0), LocalGuide(1.0), x),
        unchanged(Local(0.3), LocalGuide(0.3, width=1.2), x),
        unchanged(Two(1.0), no_guide, x),
    ]
    comparison = compare(runs, y, num_particles=2000)
    parts = torch.stack([torch.from_numpy(normal(y, m, 1.0)) for m in (-1.0, 1.0)])
    exact = [normal(y, 0.0, 2.0), normal(y, 0.0, 1.09), (parts.logsumexp(0) - math.log(2)).numpy()]
    for score, l in zip(comparison.scores, exact, strict=True):
        assert abs(score.value - l.mean()) < 5 * score.monte_carlo_error + 1e-5
    assert [s.kind for s in comparison.scores] == ["lower bound", "lower bound", "exact"]
    assert comparison.order[0] == 0
    d = exact[1] - exact[0]
    difference, error = comparison.difference(1, 0)
    assert difference == pytest.approx(d.mean(), abs=5 * comparison.scores[1].monte_carlo_error)
    assert error == pytest.approx(d.std(ddof=1) / 20, rel=0.05)
    assert comparison.verdict(1) == "worse"
    # Unpaired errors are larger: rows that are hard for one are hard for the other.
    assert (
        error
        < math.hypot(comparison.scores[0].standard_error, comparison.scores[1].standard_error) / 1.5
    )


def test_compare_predicts_by_global_latents_given_the_training_rows() -> None:
    x, y = torch.randn(30), torch.randn(200)
    run = unchanged(Mean(), posterior(float(x.sum())), x)
    comparison = compare([run, unchanged(Two(0.1), no_guide, x)], y, num_particles=4000)
    exact = normal(y, x.sum() / 31, 1 + 1 / 31)
    score = comparison.scores[0]
    assert score.kind == "predictive"
    assert abs(score.value - exact.mean()) < 5 * score.monte_carlo_error
    assert comparison.verdict(1) in ("as good", "worse", "best")


class ReadingGuide(PyroModule):
    """The posterior of Mean given the rows that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        total, n = x.sum(), len(x)
        pyro.sample("m", Normal(total / (n + 1) + self.shift, (n + 1) ** -0.5))


def test_compare_hides_the_compared_rows_from_a_guide_that_reads_data() -> None:
    x, y = torch.randn(30), 3.0 + torch.randn(200)
    comparison = compare([unchanged(Mean(), ReadingGuide(), x)] * 2, y, num_particles=4000)
    exact = normal(y, x.sum() / 31, 1 + 1 / 31).mean()
    cheating = normal(y, y.sum() / 201, 1 + 1 / 201).mean()
    assert abs(comparison.scores[0].value - exact) < 5 * comparison.scores[0].monte_carlo_error
    assert exact < cheating - 1


def test_compare_adds_leave_one_out_where_training_rows_can_be_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 1)))
    source = str(tmp_path / "x.npy")

    class Column(Mean):
        def forward(self, x: Tensor) -> None:
            super().forward(x[:, 0])

    total = float(np.load(source)[:30].sum())
    runs = [unchanged(Column(), posterior(total), source, validation=10) for _ in range(2)]
    comparison = compare(runs)
    assert comparison.rows == "10 rows, held out by all"
    assert all(s.loo is not None and len(s.loo.elpd_i) == 30 for s in comparison.scores)
    assert comparison.loo_difference(0, 1) == (0.0, 0.0)
    assert compare(runs, np.zeros((5, 1), np.float32)).scores[0].loo is not None


def score(name: str, l: Any) -> Score:
    return Score(name=name, per_row=np.asarray(l), parameters=3, seconds=1.5, steps=10)


def test_comparison_false_positive_rate_is_at_most_one_in_fifty() -> None:
    draw = np.random.default_rng(0)
    worse = 0
    for _ in range(500):
        base = draw.normal(size=100)
        pair = (score("a", base + draw.normal(size=100)), score("b", base + draw.normal(size=100)))
        comparison = Comparison(pair, "100 rows")
        worse += comparison.verdict(comparison.order[1]) == "worse"
    assert worse <= 10


class LearnedMeanGuide(PyroModule):
    """A normal q(m), far wider than the error over rows."""

    def __init__(self, mean: float, sd: float) -> None:
        super().__init__()
        self.mean, self.sd = nn.Parameter(torch.tensor(mean)), sd

    def forward(self, x: Tensor) -> None:
        pyro.sample("m", Normal(self.mean, self.sd))


class Hierarchy(PyroModule):
    """`Mean` with its noise split: z_n ~ N(m, .6²), x_n ~ N(z_n, .8²)."""

    def forward(self, x: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(m, 0.6))
            pyro.sample("x", Normal(z, 0.8), obs=x)


class HierarchyGuide(LearnedMeanGuide):
    def forward(self, x: Tensor) -> None:
        m = pyro.sample("m", Normal(self.mean, self.sd))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(0.64 * m + 0.36 * x, 0.55))


@pytest.mark.slow
def test_compare_monte_carlo_error_is_that_of_the_shared_draws() -> None:
    """Two runs with one predictive density differ by more than 2.5 errors in 1 of 80 seeds."""
    x, y = torch.randn(30), torch.randn(200) + 0.5
    runs = [unchanged(Mean(), LearnedMeanGuide(0.1, 0.3), x) for _ in range(2)]
    exact = normal(y, 0.1, 1.09).mean()
    z, off = [], []
    for seed in range(40):
        comparison = compare(runs, y, names=["a", "b"], num_particles=200, seed=seed)
        a, b = comparison.scores
        difference, error = comparison.difference(0, 1)
        z.append(difference / error)
        off.append((a.value - exact) / a.monte_carlo_error)
        assert a.kind == b.kind == "predictive"
    assert 0.65 < np.std(z) < 1.45
    assert 0.65 < np.std(off) < 1.45
    assert sum(abs(value) > 2.5 for value in z) <= 3


@pytest.mark.slow
def test_compare_monte_carlo_error_covers_local_latents_and_unequal_draws() -> None:
    """With local latents a run has a fifth of the draws of the other."""
    x, y = torch.randn(30), torch.randn(50) + 0.5
    runs = [
        unchanged(Mean(), LearnedMeanGuide(0.1, 0.3), x),
        unchanged(Hierarchy(), HierarchyGuide(0.1, 0.3), x),
    ]
    z = []
    for seed in range(30):
        comparison = compare(runs, y, num_particles=1000, seed=seed)
        assert all(s.reliable for s in comparison.scores)
        d = comparison.scores[0].per_row - comparison.scores[1].per_row
        noise = math.hypot(*(s.monte_carlo_error for s in comparison.scores))
        z.append(float(d.mean()) / noise)
    assert 0.65 < np.std(z) < 1.4
    assert abs(np.mean(z)) < 5 / 30**0.5


def test_compare_gives_unreliable_values_no_error_and_no_verdict() -> None:
    x, y = torch.randn(30), 4 * torch.randn(40)
    far = unchanged(Local(0.02), LocalGuide(0.02, width=0.2), x)
    comparison = compare(
        [far, unchanged(Local(0.02), LocalGuide(0.02), x)], y, names=["far", "near"]
    )
    assert comparison.order == [1, 0]
    assert comparison.verdict(0) == "unknown"
    assert math.isnan(comparison.difference(0, 1)[1])
    row = comparison.to_json()[1]
    assert row["error"] is None
    assert row["difference_error"] is None
    line = next(line for line in str(comparison).splitlines() if line.startswith("far"))
    assert "±" not in line
    assert "there is no error: far" in comparison.note
    comparison_figure(comparison)


class ChangePoint(PyroModule):
    """The mean jumps from `low` to `low` + 5 at one of 30 places, summed out."""

    def __init__(self, low: float = 0.0) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.tensor(low))

    def forward(self, x: Tensor) -> None:
        summed = {"enumerate": "parallel"}
        tau = pyro.sample("tau", Categorical(torch.ones(30) / 30), infer=summed)
        with pyro.plate("data", len(x), dim=-1):
            later = torch.arange(len(x)) >= tau
            pyro.sample("x", Normal(self.low + 5.0 * later, 1.0), obs=x)


def test_compare_averages_a_change_point_over_its_posterior() -> None:
    train = torch.cat([torch.randn(12), 5 + torch.randn(18)])
    new = torch.cat([torch.randn(12), 5 + torch.randn(18)])
    runs = [unchanged(ChangePoint(low), no_guide, train) for low in (0.0, 1.0)]
    comparison = compare(runs, new, names=["right", "shifted"])
    for score, low in zip(comparison.scores, (0.0, 1.0), strict=True):
        old, terms = (
            torch.stack(
                [Normal(low + 5.0 * (torch.arange(30) >= t), 1.0).log_prob(x) for t in range(30)]
            ).double()
            for x in (train, new)
        )
        exact = (old.sum(1).log_softmax(0)[:, None] + terms).logsumexp(0)
        np.testing.assert_allclose(score.per_row, exact, rtol=0, atol=1e-5)
    assert comparison.verdict(1) == "worse"
    evidence = runs[0].log_evidence(new)
    np.testing.assert_allclose(evidence.per_row, comparison.scores[0].per_row, rtol=0, atol=1e-9)
    assert runs[0].log_evidence(train).kind == "joint"


def test_comparison_note_warns_about_lower_bounds_with_high_k_hat() -> None:
    l = np.arange(9.0)
    for share, warns in ((0.5, True), (0.01, False)):
        bound = replace(score("a", l), kind="lower bound", share_bad=share)
        note = Comparison((bound, score("b", l)), "9 rows").note
        assert ("may be better than its value says" in note) == warns


def test_comparison_table_json_and_figure_agree() -> None:
    l = np.random.default_rng(0).normal(-5, 1, 100)
    noise = np.random.default_rng(1).normal(0, 0.1, 100)
    comparison = Comparison((score("far", l - 1 + noise), score("near", l)), "100 rows, passed")
    rows = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert [r["run"] for r in rows] == ["near", "far"]
    assert rows[1]["verdict"] == "worse"
    text = str(comparison)
    assert text.index("near") < text.index("far")
    assert max(len(line) for line in text.splitlines()) <= 80
    figure = comparison_figure(comparison)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["near", "far"]
    points = [line.get_xdata() for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert float(np.ravel(points[1])[0]) == pytest.approx(rows[1]["difference"])


def test_compare_rejects_invalid_runs_rows_names_and_particles() -> None:
    x = torch.randn(40)
    a = unchanged(Local(), LocalGuide(), x, validation=10)
    with pytest.raises(ValueError, match="at least two"):
        compare([a])
    with pytest.raises(ValueError, match="held no rows out"):
        compare([a, unchanged(Local(), LocalGuide(), x)])
    with pytest.raises(ValueError, match="other data"):
        compare([a, unchanged(Local(), LocalGuide(), x + 1, validation=10)])
    with pytest.raises(ValueError, match="other rows"):
        compare([a, unchanged(Local(), LocalGuide(), x, validation=10, seed=1)])
    with pytest.raises(ValueError, match="rows of shape"):
        compare([a, a], torch.randn(5, 2))
    assert compare([a, a]).difference(0, 1)[0] == pytest.approx(0.0, abs=0.05)
    a.training_data = None  # as in a run that was loaded
    with pytest.raises(ValueError, match="Local \\(1\\) held out were in memory and are not kept"):
        compare([a, a])
    with pytest.raises(ValueError, match="at least two rows"):
        compare([a, a], x[:1])
    with pytest.raises(ValueError, match=r"runs=<Run> is a Run\. Pass a list"):
        compare(a)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"an entry 0, .* Pass a list"):
        compare(["runs/a", "runs/b"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="the same name: a, a"):
        compare([a, a], x, names=["a", "a"])
    for wrong in (3, 100.0):
        with pytest.raises(ValueError, match=r"num_particles=.* Pass a whole number"):
            compare([a, a], x, num_particles=wrong)  # type: ignore[arg-type]


class Counts(PyroModule):
    """x_n ~ Poisson(λ) for all columns, for the last one only, or given the sum of all."""

    def __init__(self, condition: str = "") -> None:
        super().__init__()
        self.rate = PyroParam(torch.tensor(2.0), constraint=constraints.positive)
        self.condition = condition

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            if self.condition == "sum":
                shares = self.rate ** torch.arange(3)
                pyro.sample("x", BagOfWords(x.sum(-1), shares / shares.sum()), obs=x)
            elif self.condition == "others":
                pyro.sample("x", Poisson(self.rate), obs=x[:, 2])
            else:
                pyro.sample("x", Poisson(self.rate).expand([3]).to_event(1), obs=x)


class Measured(PyroModule):
    """The counts as real numbers: a narrow density at whole numbers exceeds any probability."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(self.mean, 1.0).to_event(1), obs=x)


def test_compare_rejects_likelihoods_of_different_quantities() -> None:
    x = torch.poisson(torch.full((30, 3), 2.0))
    counts = unchanged(Counts(), no_guide, x)
    for model, message in (
        (Measured(), "3 of counts or categories a row, Measured to 3 of real numbers a row"),
        (Counts("others"), r"1 of counts or categories a row: nats"),
        (Counts("sum"), "3 of counts or categories a row given their sum"),
    ):
        with pytest.raises(NotComparableError, match=message):
            compare([counts, unchanged(model, no_guide, x)], x)
    assert compare([counts, counts], x).scores[0].kind == "exact"


def test_comparison_note_names_rows_that_were_fitted_to() -> None:
    x = torch.randn(40)
    runs = [unchanged(Local(), LocalGuide(), x), unchanged(Two(), no_guide, x)]
    assert "rows that were fitted to" in compare(runs, x).note
    assert "rows that were fitted to" not in compare(runs, x + 1).note


def test_comparison_note_has_the_reason_for_missing_leave_one_out() -> None:
    x, y = torch.randn(30), torch.randn(20)
    runs = [unchanged(Mean(), posterior(float(x.sum())), x), unchanged(Two(0.1), no_guide, x)]
    in_memory = compare(runs, y, num_particles=50).scores[0]
    assert in_memory.loo is not None
    assert len(in_memory.loo.elpd_i) == len(x)
    runs[0].training_data = None  # as in a run that was loaded
    comparison = compare(runs, y, num_particles=50)
    assert "No leave-one-out: Mean (its training rows cannot be loaded" in comparison.note
    assert [row["no_loo"] == "" for row in comparison.to_json()] == [
        comparison.scores[i].no_loo == "" for i in comparison.order
    ]
    assert comparison.scores[1].no_loo == ""  # no global latents: none is missing


def test_comparison_table_folds_long_names() -> None:
    names = ["A" * 60 + "1", "A" * 60 + "2"]
    text = str(Comparison(tuple(score(n, np.arange(9.0)) for n in names), "9 rows"))
    assert all(text.replace("\n", "").replace(" ", "").count(n[-1]) for n in names)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80
