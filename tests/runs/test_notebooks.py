"""Results in notebooks, pictures by name, histories and logs."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure

import ppl_lvm as lvm
from ppl_lvm import loggers
from ppl_lvm.models import PPCA, GaussianMixture

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run() -> lvm.Run:
    return lvm.fit_em(PPCA(1), X)


@pytest.fixture(scope="module")
def logged() -> tuple[lvm.Run, list[dict[str, Any]]]:
    entries: list[dict[str, Any]] = []
    run = lvm.fit(
        PPCA(1),
        None,
        X,
        num_steps=40,
        validate_every=10,
        validation=10,
        accuracy=0,
        log=entries.append,
        progress=False,
        engine="eager",
    )
    return run, entries


@pytest.mark.slow
def test_results_have_html_and_short_text(run: lvm.Run) -> None:
    diagnosis = lvm.diagnose(run, X, temperatures=3)
    issues = lvm.check(GaussianMixture(2), None, X)
    comparison = lvm.compare([run, run], X, names=["a<b", "c"])
    evidence = run.log_evidence(X, 5)
    for result in (run, lvm.signature(PPCA(1), X), diagnosis, issues, comparison, evidence):
        html: Any = result
        root = ET.fromstring(f"<div>{html._repr_html_()}</div>".replace("<br>", "<br/>"))
        assert "".join(root.itertext()).strip()
        assert all(cell.get("scope") for cell in root.iter("th"))
        assert len(repr(result)) < 5000
    assert repr(diagnosis) == str(diagnosis)
    assert "a&lt;b" in comparison._repr_html_()
    assert "PPCA" in run._repr_html_()


def test_issue_of_a_pair_is_a_row_of_the_table() -> None:
    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.sample("other", dist.Normal(0.0, 1.0))

    issues = lvm.check(model, guide, X)
    root = ET.fromstring(f"<div>{issues._repr_html_()}</div>".replace("<br>", "<br/>"))
    rows = list(root.iter("tr"))
    assert len(rows) == len(issues) + 1
    assert repr(issues) == str(issues)


def test_pictures_by_name_are_figures_that_are_not_shown(run: lvm.Run) -> None:
    before = plt.get_fignums()
    assert "training" in dir(run.plot)
    assert isinstance(run.plot.training(), Figure)
    assert isinstance(run.plot.reconstructions(X[:20]), Figure)
    assert isinstance(run.plot.worst_explained(), Figure)
    assert plt.get_fignums() == before
    with pytest.raises(ValueError, match=r"plot\.topics: this picture does not apply to PPCA"):
        run.plot.topics()
    with pytest.raises(AttributeError, match=r"Unknown picture 'trainin'\..*Did you mean training"):
        run.plot.trainin()


def test_log_receives_every_evaluation(logged: tuple[lvm.Run, list[dict[str, Any]]]) -> None:
    run, entries = logged
    assert [entry["step"] for entry in entries] == [10, 20, 30, 40]
    assert [entry["validation_bound"] for entry in entries] == run.history["validation_bound"]
    assert entries[-1]["bound"] == run.history["bound"][-1]
    assert {"seconds", "seed", "learning_rate"} <= entries[0].keys()
    assert "log" not in run.record["options"]
    iterations: list[dict[str, Any]] = []
    em = lvm.fit_em(PPCA(1), X, restarts=2, log=iterations.append)
    assert iterations[-1]["bound"] == pytest.approx(em.results["bound"])
    assert [entry["step"] for entry in iterations] == list(range(1, len(iterations) + 1))


def test_history_is_a_table_by_step(logged: tuple[lvm.Run, list[dict[str, Any]]]) -> None:
    run, _ = logged
    frame = run.history_frame()
    assert list(frame.columns) == ["bound", "validation_bound", "learning_rate"]
    assert frame["bound"].tolist() == run.history["bound"]
    assert frame["validation_bound"].dropna().tolist() == run.history["validation_bound"]
    assert frame.index[frame["validation_bound"].notna()].tolist() == [10, 20, 30, 40]


def test_loggers_pass_finite_numbers_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Against stand-ins of the libraries."""
    calls: list[Any] = []
    writer = SimpleNamespace(
        add_scalar=lambda *call: calls.append(call), flush=lambda: calls.append("flush")
    )
    board = SimpleNamespace(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    keyed = SimpleNamespace(
        log_metrics=lambda metrics, step, run_id: calls.append((metrics, step, run_id)),
        log=lambda metrics, step: calls.append((metrics, step)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", keyed)
    monkeypatch.setitem(sys.modules, "wandb", keyed)
    entry = {"step": 7, "bound": -1.5, "validation_bound": np.nan}
    for log in (loggers.tensorboard(tmp_path), loggers.mlflow("id"), loggers.wandb()):
        log(entry)
    assert calls == [
        ("bound", -1.5, 7),
        "flush",
        ({"bound": -1.5}, 7, "id"),
        ({"bound": -1.5}, 7),
    ]
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match=r"log: mlflow is not installed. Run: pip install mlflow"):
        loggers.mlflow()(entry)
