"""HTML report in one file, the answer first.

    page = html([Entry("VAE on digits", {"bound": "-18.5"}, diagnosis, pictures)])
    page = html([first, second], beside=SideBySide(...))    # side by side first

`page.html.jinja` is the template, `page.css` its style. Pictures are inline SVG in `<img>` with
alternative text. There is no script, font or link, so the page loads without a network. Questions
are sections to open; bad and doubtful ones are open. It has one column on a phone, follows the dark
preference, and prints everything.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ppl_lvm.core.storage import write_atomic
from ppl_lvm.diagnostics.diagnosis import Diagnosis
from ppl_lvm.diagnostics.finding import Finding
from ppl_lvm.diagnostics.table import not_applicable
from ppl_lvm.report.answer import GLYPHS, Answer, answer
from ppl_lvm.report.remedies import Remedy
from ppl_lvm.report.run_figure import Picture
from ppl_lvm.report.summary import Number


@dataclass(frozen=True)
class Entry:
    """One run of the report.

    Attributes:
        title: heading.
        facts: settings and results, by name.
        diagnosis: the table of verdicts.
        pictures: figures with captions.
        name: short title for comparisons.
        answer: the answer; None takes that of the diagnosis.
        numbers: at most three, (value with its unit, what it is).
        remedies: at most three.
        lead: the picture of the first screen.
    """

    title: str
    facts: Mapping[str, str]
    diagnosis: Diagnosis
    pictures: Sequence[Picture]
    name: str = ""
    answer: Answer | None = None
    numbers: Sequence[Number] = ()
    remedies: Sequence[Remedy] = ()
    lead: Picture | None = None


@dataclass(frozen=True)
class SideBySide:
    """Comparison of runs: rows of a table, a picture if available, a note, and one sentence."""

    rows: Sequence[Mapping[str, str]]
    picture: Picture | None
    note: str
    sentence: str = ""


def html(
    entries: Sequence[Entry],
    title: str = "Can this fit be trusted?",
    beside: SideBySide | None = None,
) -> str:
    """Text of the page; several entries begin with their differences."""
    environment = Environment(
        loader=PackageLoader("ppl_lvm.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    sections = [
        {
            "title": entry.title,
            "name": entry.name or entry.title,
            "id": f"run-{number}",
            "facts": entry.facts,
            "answer": entry.answer or answer(entry.diagnosis.findings),
            "numbers": entry.numbers,
            "remedies": entry.remedies,
            "not_applicable": not_applicable(entry.diagnosis.findings),
            "lead": entry.lead,
            "pictures": [p for p in entry.pictures if p is not entry.lead],
        }
        for number, entry in enumerate(entries, 1)
    ]
    differing, equal = _verdicts_beside(entries) if len(entries) > 1 else ([], 0)
    return environment.get_template("page.html.jinja").render(
        title=title,
        glyphs=GLYPHS,
        entries=sections,
        beside=beside,
        verdicts=differing,
        equal=equal,
    )


def _verdicts_beside(entries: Sequence[Entry]) -> tuple[list[dict[str, Any]], int]:
    """One row per diagnostic that differs between runs, and the number of the others."""
    by_name = [{_general(f.name): f for f in e.diagnosis.findings} for e in entries]
    names = dict.fromkeys(n for each in by_name for n, f in each.items() if f.value is not None)
    rows = {name: [each.get(name) for each in by_name] for name in names}
    differing = [{"name": n, "cells": cells} for n, cells in rows.items() if _differ(cells)]
    return differing, len(rows) - len(differing)


def _differ(cells: Sequence[Finding | None]) -> bool:
    """True if verdicts differ, or values by more than three of their errors."""
    if len({None if f is None else f.verdict for f in cells}) > 1:
        return True
    known = [f for f in cells if f is not None and f.value is not None and f.error is not None]
    for i, a in enumerate(known):
        for b in known[:i]:
            error = math.hypot(a.error or 0.0, b.error or 0.0)
            if abs((a.value or 0.0) - (b.value or 0.0)) > 3 * error > 0:
                return True
    return False


def _general(name: str) -> str:
    """Name of a finding without numbers that differ between runs: "active units of 10"."""
    name = re.sub(r"− (ELBO|IWAE-\d+)", "− bound", name)
    return re.sub(r"(?<=of )\d+|(?<=last )\d+|(?<=central )\d+%", "…", name)


def write(entries: Sequence[Entry], path: str | Path, beside: SideBySide | None = None) -> None:
    """Write the page atomically."""
    write_atomic(Path(path), html(entries, beside=beside).encode())
