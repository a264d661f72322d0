"""Write a report of run directories."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ppl_lvm.core.messages import nats
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.types import Say
from ppl_lvm.data import Data, load_data
from ppl_lvm.diagnostics.budget import Budget, evenly_spaced_rows
from ppl_lvm.diagnostics.diagnosis import Diagnosis
from ppl_lvm.diagnostics.diagnosis import diagnose as diagnose_pair
from ppl_lvm.diagnostics.finding import Finding, format_with_error
from ppl_lvm.posterior.evidence import shares_latents
from ppl_lvm.posterior.evidence_text import evidence_text
from ppl_lvm.report import html, summary
from ppl_lvm.report.answer import answer
from ppl_lvm.report.figures.comparison import picture
from ppl_lvm.report.figures.diagnosis import pictures as diagnosis_pictures
from ppl_lvm.report.remedies import fit_command, remedies
from ppl_lvm.report.run_figures import RUN_FIGURES, worst_rows
from ppl_lvm.report.run_figures import figures as fit_figures
from ppl_lvm.report.run_view import RunView
from ppl_lvm.runs.comparability import NotComparableError, short_names
from ppl_lvm.runs.comparison import Comparison, compare
from ppl_lvm.runs.directory import load_run
from ppl_lvm.runs.record import has_weights
from ppl_lvm.runs.run import Run

HIGH_K_HAT_DIFFERENCE = 0.02  # share of rows


@public_call
def report(
    runs: Sequence[str | Path | Run],
    path: str | Path,
    *,
    data: Any = None,
    trust: bool | Sequence[str] = False,
    say: Say | None = None,
) -> Path:
    """Diagnose runs and write one HTML page that needs no network.

    Args:
        runs: runs or their directories.
        data: the training rows of runs whose data had no name or path. Without them the page has
            the rows that the run keeps.
        trust: that of `load_run`.

    Raises:
        FileNotFoundError, ValueError: a run does not exist, or its data cannot be loaded.
    """
    loaded = [run if isinstance(run, Run) else load_run(run, trust=trust) for run in runs]
    names = short_names(loaded)
    if len(loaded) > 1:
        names = summary.names_by_settings(loaded, names)
    entries = [_entry(run, name, data, say) for run, name in zip(loaded, names, strict=True)]
    html.write(entries, path, _beside(loaded, names, entries) if len(loaded) > 1 else None)
    return Path(path)


def _rows(run: Run, data: Any) -> tuple[Data, Data | None, str]:
    """Training rows, held-out rows, and a note where these are not all rows of the fit."""
    if run.training_data is not None or run.record["data"]["source"] is not None:
        return *run.data(), ""
    if data is not None:
        return data if isinstance(data, Data) else load_data(data, missing="keep"), None, ""
    stored = load_data(run.example_rows, missing="keep")
    note = "the data had no name or path"
    if len(stored) < run.record["data"]["train_rows"]:
        note += f"; figures and diagnosis are of the {len(stored)} rows that the run keeps"
    if has_weights(run.record):
        note += "; without their weights"
    return stored, None, note


def _diagnosis(
    run: Run, train: Data, held_out: Data | None, is_partial: bool, say: Say | None
) -> Diagnosis:
    """The diagnosis by all rows, or by those that the run keeps where rows are independent."""
    if not is_partial:
        return run.diagnose(train, held_out=held_out, say=say)
    weighted, fewer = has_weights(run.record), len(train) < run.record["data"]["train_rows"]
    if shares_latents(run.pair, *run.batch(train)) and (weighted or fewer):
        why = "Rows share latents, and the training rows are not kept. Pass them (data=)."
        return Diagnosis((Finding(question="Can this fit be trusted?", name="all", why=why),))
    return diagnose_pair(run.pair, run.history, *run.batch(train), say=say)


def _entry(run: Run, name: str, data: Any, say: Say | None) -> html.Entry:
    train, held_out, note = _rows(run, data)
    diagnosis = _diagnosis(run, train, held_out, bool(note), say)
    data = held_out or train
    figures = fit_figures(run, data)
    tightness = diagnosis.details.get("tightness")
    if tightness is not None:
        sizes = Budget.of(run.pair, run.batch(train))
        few = evenly_spaced_rows(
            evenly_spaced_rows(run.batch(data), sizes.rows), sizes.annealing_rows
        )
        figure = worst_rows(run, data, few, tightness.best)
        if figure is not None:
            figures["worst_explained"] = figure
    pictures = {slug: RUN_FIGURES[slug].picture(figure) for slug, figure in figures.items()}
    view = RunView(run, data, run.batch(data))
    result = answer(
        diagnosis.findings, summary.kinds(view, list(figures)), run.results.get("degenerate")
    )
    converged = [f.verdict for f in diagnosis.findings if f.slug == "convergence"]
    return html.Entry(
        f"{run.record['model']['name']} on {run.record['data']['name']}",
        facts(run, note, train.columns),
        diagnosis,
        [*pictures.values(), *diagnosis_pictures(diagnosis.details)],
        name,
        result,
        summary.numbers(run, view, run.batch(train)[0], diagnosis.details),
        remedies(run, diagnosis.findings),
        summary.lead(pictures, "bad" in converged[:1]),
    )


def _beside(
    runs: Sequence[Run], names: Sequence[str], entries: Sequence[html.Entry]
) -> html.SideBySide:
    """Comparison on the rows that all runs held out, else on all rows with a note."""
    preface = ""
    try:
        comparison = compare(runs, names=names)
    except ValueError as error:
        data = {run.record["data"]["fingerprint"] for run in runs}
        source = runs[0].record["data"]["source"]
        if len(data) > 1 or source is None or isinstance(error, NotComparableError):
            return html.SideBySide([], None, f"Not compared: {error}")
        comparison = compare(runs, load_data(**source), names=names)
        preface = f"{error} So compared on all rows. "
    rows = [
        {
            "run": row["run"],
            "verdict": row["verdict"],
            "log p(x), nats per row": format_with_error(row["value"], row["error"]),
            "difference to the best, paired": ""
            if row["verdict"] == "best"
            else format_with_error(row["difference"], row["difference_error"]),
            "leave-one-out": format_with_error(row["loo"], row["loo_error"]),
            "parameters": str(row["parameters"]),
            "seconds": f"{row['seconds']:.1f}",
        }
        for row in comparison.to_json()
    ]
    note = f"{preface}{comparison.note}"
    if any(s.share_bad for s in comparison.scores):
        note += (
            " The shares of rows with a high k̂ are of these rows and draws; those in the sections "
            "below are of the diagnosis, which takes more draws, of other rows."
        )
    return html.SideBySide(
        rows, picture(comparison), note, comparison_sentence(comparison, entries)
    )


def comparison_sentence(comparison: Comparison, entries: Sequence[html.Entry]) -> str:
    """One sentence: the better run, and the point in favor of another."""
    first, second = comparison.order[:2]
    names = [score.name for score in comparison.scores]
    difference, error = comparison.difference(first, second)
    amount = format_with_error(difference, error)
    if comparison.verdict(second) == "worse":
        text = f"{names[first]} is better than {names[second]} by {amount} nats per row"
    elif comparison.verdict(second) == "as good":
        text = f"{names[first]} and {names[second]} are as good ({amount} nats per row)"
    else:
        text = f"{names[first]} is ahead of {names[second]} by {amount} nats per row, unproven"
    shares = [entry.diagnosis.details.get("khat") for entry in entries]
    a, b = (None if s is None or s.joint else s.share_bad for s in (shares[first], shares[second]))
    if a is not None and b is not None and abs(a - b) > HIGH_K_HAT_DIFFERENCE:
        link = "but its guide is the poorer" if a > b else "and its guide is the better"
        text += f", {link} posterior (k̂ > 0.7 for {a:.0%} of the rows against {b:.0%})"
    return text + "."


def _with_error(bound: float | None, error: float | None) -> str:
    return nats(bound, f" ± {error:.4f} nats per row" if error else " nats per row")


def saved_on(directory: Path) -> str:
    """The day and time at which a run was written."""
    written = (directory / "run.json").stat().st_mtime
    return datetime.fromtimestamp(written).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def facts(run: Run, note: str = "", columns: Sequence[str] | None = None) -> dict[str, str]:
    """Settings and results of a run, as text, with a note on its data and their columns."""
    record, results = run.record, run.results
    columns = (record["data"]["source"] or {}).get("columns") or columns
    settings = record["model"]["settings"] or {}
    words = ", ".join(f"{k}={v!r}" for k, v in settings.items())
    place = run.directory
    entries = {
        "date": "not saved" if place is None else saved_on(place),
        "duration": f"{results['seconds']:.1f} s",
        "command": fit_command(run),
        "model": f"{record['model']['address'] or record['model']['name']}({words})",
        "guide": record["guide"]["address"] or record["guide"]["name"],
        "objective": ", judged by ".join(
            record[key] for key in ("algorithm", "objective") if key in record
        ),
        "data": f"{record['data']['name']}: {record['data']['train_rows']} training rows, "
        f"{record['data']['held_out_rows']} held out" + (f" ({note})" if note else ""),
        "bound": _with_error(results["bound"], results["bound_monte_carlo_error"]),
        "log evidence": "not computed"
        if results["log_evidence"] is None
        else evidence_text(results, results["log_evidence_of"]),
        "columns": ", ".join(columns) if columns else "not named",
        "steps": str(results["steps"]),
        "seed": str(results["seed"]),
        "versions": ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
    }
    if results["held_out"] is not None:
        error = results["held_out_monte_carlo_error"]
        entries["held out"] = _with_error(results["held_out"], error)
    return entries | {
        name: f"not computed: {reason}" for name, reason in results.get("not_computed", {}).items()
    }
