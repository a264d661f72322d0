"""A report in one HTML file: verdicts first, then pictures; opens without a network.

    page = html([Entry("VAE on digits", {"bound": "-18.5"}, diagnosis, pictures)])
    page = html([one, other], comparison=Comparison(...))    # side by side first

Pictures are inlined as SVG behind `<img>` with a text alternative. No script, no font, no link:
nothing is requested. One column on a phone, page breaks between sections in print.
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
    """One run of the report: its title, what was run, its table and its pictures.

    `name` is what it is called beside others, shorter than its title.
    """

    title: str
    facts: Mapping[str, str]
    diagnosis: Diagnosis
    pictures: Sequence[Picture]
    name: str = ""


@dataclass(frozen=True)
class SideBySide:
    """Runs side by side: the rows of a table, its picture if there is one, and a note."""

    rows: Sequence[Mapping[str, str]]
    picture: Picture | None
    note: str


def html(
    entries: Sequence[Entry],
    title: str = "Can this fit be trusted?",
    beside: SideBySide | None = None,
) -> str:
    """The page as text; with several entries, what differs between them first."""
    environment = Environment(
        loader=PackageLoader("ppl_lvm.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    shown = [
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
    drawn = None if beside is None or beside.picture is None else inline(beside.picture.figure)
    return environment.get_template("page.html.jinja").render(
        title=title,
        entries=shown,
        beside=beside,
        beside_source=drawn,
        verdicts=_verdicts_beside(entries) if len(entries) > 1 else [],
    )


def _verdicts_beside(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row a diagnostic that has a figure in some run: its findings, None where one has none."""
    by_name = [{_general(f.name): f for f in e.diagnosis.findings} for e in entries]
    names = dict.fromkeys(n for own in by_name for n, f in own.items() if f.value is not None)
    return [{"name": name, "cells": [own.get(name) for own in by_name]} for name in names]


def _general(name: str) -> str:
    """A finding's name without the numbers that differ between runs: "active units of 10"."""
    return re.sub(r"(?<=of )\d+|(?<=last )\d+|(?<=central )\d+%", "…", name)


def inline(figure: Figure) -> str:
    """A figure as the source of an image: SVG, base64."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "ppl_lvm"}):  # the same figure gives the same bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def write(entries: Sequence[Entry], path: str | Path, beside: SideBySide | None = None) -> None:
    """Write the page; a reader never sees half of it."""
    write_atomic(Path(path), html(entries, beside=beside).encode())
