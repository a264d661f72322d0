"""Results that cannot be computed after training."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest
import torch

from models.implicit import Implicit
from ppl_lvm import fit, fit_adversarial, fit_em, fit_mcem, load_run
from ppl_lvm.cli.results import print_results
from ppl_lvm.report.report import facts
from ppl_lvm.runs.adversarial import load_adversaries

MIXTURE = "ppl_lvm.models:GaussianMixture"
DEGENERATE = "ppl_lvm.models.gmm.GaussianMixture.degenerate"
EVIDENCE = "ppl_lvm.fitting.session.log_evidence"
COMMON: dict[str, Any] = {"settings": {"components": 2}, "validation": 0.2}


def by_svi(**options: Any) -> Any:
    return fit(MIXTURE, None, "iris", num_steps=3, progress=False, **COMMON, **options)


def by_em(**options: Any) -> Any:
    return fit_em(MIXTURE, "iris", max_iterations=2, **COMMON, **options)


def by_mcem(**options: Any) -> Any:
    sizes = {"max_iterations": 2, "warmup": 3, "num_draws": 2, "guide_steps": 2}
    x = torch.poisson(torch.full((12, 3), 2.0), generator=torch.Generator().manual_seed(0))
    model = "ppl_lvm.models:FactorModel"
    return fit_mcem(model, x, progress=False, **sizes, **options)  # type: ignore[arg-type]


def by_game(**options: Any) -> Any:
    x = torch.randn(25, 2, generator=torch.Generator().manual_seed(0))
    return fit_adversarial(Implicit(latent=2), x, num_steps=2, progress=False, **options)


CASES = [
    (by_svi, EVIDENCE, "log evidence"),
    (by_svi, "ppl_lvm.fitting.svi.num_latent_values", "log evidence"),
    (by_svi, "ppl_lvm.training.restarts.clusterings", "clusterings"),
    (by_svi, "ppl_lvm.training.evaluation._evaluate_once", "held-out bound"),
    (by_svi, DEGENERATE, "degenerate"),
    (by_svi, "ppl_lvm.report.run_figures.draw", "figures"),
    (by_em, EVIDENCE, "log evidence"),
    (by_em, "ppl_lvm.fitting.em.clusterings", "clusterings"),
    (by_em, DEGENERATE, "degenerate"),
    (by_em, "ppl_lvm.report.run_figures.RunView", "figures"),
    (by_mcem, EVIDENCE, "log evidence"),
    (by_mcem, "ppl_lvm.fitting.monte_carlo_em.fit_guide", "trained guide"),
    (by_mcem, "ppl_lvm.fitting.monte_carlo_em.estimate_bound", "bound"),
    (by_mcem, "ppl_lvm.training.em.monte_carlo.MonteCarloEM.finish", "draws"),
    (by_game, "ppl_lvm.runs.adversarial.Adversaries.two_sample", "two-sample test"),
    (by_game, "ppl_lvm.report.figures.adversarial.draw", "figures"),
]


def fails(*_: Any, **__: Any) -> NoReturn:
    raise KeyError("absent")


@pytest.fixture(autouse=True)
def _no_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Figures take most of the time, so they are drawn only where they are the subject."""
    if "figures" in request.node.name:
        yield
        return
    with mock.patch("ppl_lvm.report.run_figures.draw"):
        yield


def load(method: Callable[..., Any], folder: Path) -> Any:
    return load_adversaries(folder) if method is by_game else load_run(folder)


@pytest.mark.parametrize(("method", "step", "name"), CASES, ids=lambda v: getattr(v, "__name__", v))
def test_run_is_kept_and_says_why_where_a_later_result_fails(
    method: Callable[..., Any],
    step: str,
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason = "KeyError: 'absent'"
    with mock.patch(step, fails), pytest.warns(UserWarning, match=f"{name}: not computed: Key"):
        run = method(directory=tmp_path)
    loaded = load(method, tmp_path)
    for each in (run, loaded):
        assert each.results["not_computed"][name] == reason
        print_results(each)
        printed = " ".join(capsys.readouterr().out.split())
        assert f"{name} not computed: {reason}" in printed
        repr(each)
    if method is not by_game:
        assert facts(loaded)[name] == f"not computed: {reason}"
        assert set(loaded.parameters()) == set(run.parameters())


def test_run_in_memory_is_kept_where_its_evidence_fails() -> None:
    with mock.patch(EVIDENCE, fails), pytest.warns(UserWarning, match="log evidence"):
        run = by_svi()
    assert run.results["log_evidence"] is None
    assert run.results["bound"] < 0


def test_run_is_kept_where_it_cannot_be_saved(tmp_path: Path) -> None:
    saving = mock.patch("ppl_lvm.runs.run.Run.save", side_effect=OSError("disk full"))
    with saving, pytest.warns(UserWarning, match="saved run: not computed: OSError: disk full"):
        run = by_em(directory=tmp_path)
    assert run.results["bound"] < 0


@pytest.mark.slow
def test_run_that_ended_before_its_evidence_loads_and_is_completed_by_resume(
    tmp_path: Path,
) -> None:
    class Killed(BaseException):
        pass

    with mock.patch(EVIDENCE, side_effect=Killed), pytest.raises(Killed):
        by_svi(directory=tmp_path)
    ended = load_run(tmp_path)
    assert ended.results["log_evidence"] is None
    assert "ended before" in ended.results["not_computed"]["log evidence"]
    by_svi(directory=tmp_path, resume=True)
    whole = by_svi()
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["results"]["log_evidence"] == whole.results["log_evidence"]
    assert record["results"]["not_computed"] == {}
