"""Runs from their directories -> one HTML page: the verdicts, then the pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ppl_lvm.report import html
from ppl_lvm.report.diagnosis import Picture
from ppl_lvm.report.diagnosis import pictures as diagnosis_pictures
from ppl_lvm.report.draw import READINGS, figures
from ppl_lvm.run import Run, load_run


def report(
    directories: Sequence[str | Path],
    path: str | Path,
    *,
    say: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Diagnose the runs in `directories` and write one page that opens without a network.

    Raises:
        FileNotFoundError, ValueError: no such run, or its data can no longer be loaded.
    """
    html.write([_entry(load_run(directory), say) for directory in directories], path)
    return Path(path)


def _entry(run: Run, say: Callable[[str, int, int], None] | None) -> html.Entry:
    train, held_out = run.data()
    diagnosis = run.diagnose(train, held_out=held_out, say=say)
    drawn = [
        Picture(figure.get_suptitle() or slug.replace("_", " "), figure, *READINGS[slug])
        for slug, figure in figures(run, held_out or train).items()
    ]
    title = f"{run.record['model']['name']} on {run.record['data']['name']}"
    shown = [*drawn, *diagnosis_pictures(diagnosis.details)]
    return html.Entry(title, facts(run), diagnosis, shown)


def facts(run: Run) -> dict[str, str]:
    """What was run and what came of it, in words."""
    record, results = run.record, run.results
    settings = record["model"]["settings"] or {}
    words = ", ".join(f"{k}={v!r}" for k, v in settings.items())
    found = {
        "model": f"{record['model']['address'] or record['model']['name']}({words})",
        "guide": record["guide"]["address"] or record["guide"]["name"],
        "objective": record["objective"],
        "data": f"{record['data']['name']}: {record['data']['train_rows']} rows to learn from, "
        f"{record['data']['held_out_rows']} held out",
        "bound": f"{results['bound']:.4f} nats per datum",
        "log evidence": f"{results['log_evidence']:.4f} nats per datum "
        f"({results['log_evidence_of']})",
        "steps": str(results["steps"]),
        "seed": str(results["seed"]),
        "versions": ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
    }
    if results["held_out"] is not None:
        found["held out"] = f"{results['held_out']:.4f} nats per datum"
    return found
