"""Write a report of run directories: verdicts, then pictures."""

from collections.abc import Sequence
from pathlib import Path

from ppl_lvm.core.messages import nats
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.types import Say
from ppl_lvm.data import load_data
from ppl_lvm.diagnostics.budget import Budget, evenly_spaced_rows
from ppl_lvm.diagnostics.finding import format_with_error
from ppl_lvm.posterior.evidence import evidence_text
from ppl_lvm.report import html
from ppl_lvm.report.figures.comparison import picture
from ppl_lvm.report.figures.diagnosis import pictures as diagnosis_pictures
from ppl_lvm.report.run_figures import RUN_FIGURES, worst_rows
from ppl_lvm.report.run_figures import figures as fit_figures
from ppl_lvm.runs.comparability import NotComparableError, short_names
from ppl_lvm.runs.comparison import compare
from ppl_lvm.runs.directory import load_run
from ppl_lvm.runs.run import Run


@public_call
def report(
    runs: Sequence[str | Path | Run],
    path: str | Path,
    *,
    trust: bool | Sequence[str] = False,
    say: Say | None = None,
) -> Path:
    """Diagnose runs and write one HTML page that needs no network.

    `runs` are runs or their directories; `trust` is that of `load_run`.

    Raises:
        FileNotFoundError, ValueError: a run does not exist, or its data cannot be loaded.
    """
    loaded = [run if isinstance(run, Run) else load_run(run, trust=trust) for run in runs]
    names = short_names(loaded)
    entries = [_entry(run, name, say) for run, name in zip(loaded, names, strict=True)]
    html.write(entries, path, _beside(loaded, names) if len(loaded) > 1 else None)
    return Path(path)


def _entry(run: Run, name: str, say: Say | None) -> html.Entry:
    train, held_out = run.data()
    diagnosis = run.diagnose(train, held_out=held_out, say=say)
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
    pictures = [RUN_FIGURES[slug].picture(figure) for slug, figure in figures.items()]
    pictures += diagnosis_pictures(diagnosis.details)
    title = f"{run.record['model']['name']} on {run.record['data']['name']}"
    return html.Entry(title, facts(run), diagnosis, pictures, name)


def _beside(runs: Sequence[Run], names: Sequence[str]) -> html.SideBySide:
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
    return html.SideBySide(rows, picture(comparison), f"{preface}{comparison.note}")


def facts(run: Run) -> dict[str, str]:
    """Settings and results of a run, as text."""
    record, results, unit = run.record, run.results, " nats per row"
    settings = record["model"]["settings"] or {}
    words = ", ".join(f"{k}={v!r}" for k, v in settings.items())
    entries = {
        "model": f"{record['model']['address'] or record['model']['name']}({words})",
        "guide": record["guide"]["address"] or record["guide"]["name"],
        "objective": ", judged by ".join(
            record[key] for key in ("algorithm", "objective") if key in record
        ),
        "data": f"{record['data']['name']}: {record['data']['train_rows']} training rows, "
        f"{record['data']['held_out_rows']} held out",
        "bound": nats(results["bound"], unit),
        "log evidence": "not computed"
        if results["log_evidence"] is None
        else evidence_text(results, results["log_evidence_of"]),
        "steps": str(results["steps"]),
        "seed": str(results["seed"]),
        "versions": ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
    }
    if results["held_out"] is not None:
        entries["held out"] = nats(results["held_out"], unit)
    return entries | {
        name: f"not computed: {reason}" for name, reason in results.get("not_computed", {}).items()
    }
