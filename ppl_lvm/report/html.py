"""HTML report in one file: verdicts first, then pictures.

    page = html([Entry("VAE on digits", {"bound": "-18.5"}, diagnosis, pictures)])
    page = html([first, second], beside=SideBySide(...))    # side by side first

`page.html.jinja` is the template. Pictures are inline SVG in `<img>` with alternative text. There
is no script, font or link, so the page loads without a network. It has one column on a phone, and
page breaks between sections in print.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure

from ppl_lvm.core.storage import write_atomic
from ppl_lvm.diagnostics.diagnosis import Diagnosis
from ppl_lvm.report.run_figure import Picture


@dataclass(frozen=True)
class Entry:
    """One run of the report.

    Attributes:
        title: heading.
        facts: settings and results, by name.
        diagnosis: the table of verdicts.
        pictures: figures with captions.
        name: short title for comparisons.
    """

    title: str
    facts: Mapping[str, str]
    diagnosis: Diagnosis
    pictures: Sequence[Picture]
    name: str = ""


@dataclass(frozen=True)
class SideBySide:
    """Comparison of runs: rows of a table, a picture if available, and a note."""

    rows: Sequence[Mapping[str, str]]
    picture: Picture | None
    note: str


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
            "counts": {v: n for v, n in entry.diagnosis.counts().items() if n},
            "findings": entry.diagnosis.findings,
            "pictures": [(p, inline(p.figure)) for p in entry.pictures],
        }
        for number, entry in enumerate(entries, 1)
    ]
    picture = None if beside is None else beside.picture
    return environment.get_template("page.html.jinja").render(
        title=title,
        entries=sections,
        beside=beside,
        beside_source=None if picture is None else inline(picture.figure),
        verdicts=_verdicts_beside(entries) if len(entries) > 1 else [],
    )


def _verdicts_beside(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row per diagnostic with a value in some run: the findings, None where missing."""
    by_name = [{_general(f.name): f for f in e.diagnosis.findings} for e in entries]
    names = dict.fromkeys(n for each in by_name for n, f in each.items() if f.value is not None)
    return [{"name": name, "cells": [each.get(name) for each in by_name]} for name in names]


def _general(name: str) -> str:
    """Name of a finding without numbers that differ between runs: "active units of 10"."""
    return re.sub(r"(?<=of )\d+|(?<=last )\d+|(?<=central )\d+%", "…", name)


def inline(figure: Figure) -> str:
    """A figure as the source of an image: base64-encoded SVG."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "ppl_lvm"}):  # deterministic bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def write(entries: Sequence[Entry], path: str | Path, beside: SideBySide | None = None) -> None:
    """Write the page atomically."""
    write_atomic(Path(path), html(entries, beside=beside).encode())
