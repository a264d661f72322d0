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

from jinja2 import Environment, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure

from ppl_lvm.core.storage import write_atomic
from ppl_lvm.diagnostics.diagnosis import Diagnosis
from ppl_lvm.report.figures.diagnosis import Picture


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
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
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
    return environment.from_string(_PAGE).render(
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


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; margin-top: 2rem; } h3 { font-size: 1.05rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .5rem;
  border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }
.v { font-weight: 700; white-space: nowrap; } .figure { white-space: nowrap; }
tr.question th { padding-top: 1.2rem; font-size: 1rem; }
p.key { font-size: .9rem; color: #595959; }
.good { color: #00664a; } .warning { color: #8a5a00; } .bad { color: #b00020; }
.cannot-say { color: #595959; }
.pictures { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); }
figure { margin: 0; max-width: 34rem; } img { width: 100%; height: auto; }
figcaption { font-size: .9rem; }
@media (max-width: 40rem) {
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  tr { display: block; border-bottom: 1px solid #ddd; padding: .5rem 0; }
  td { display: block; border: 0; padding: .1rem 0; }
  td:empty { display: none; }
  td[data-head]::before { content: attr(data-head) ": "; color: #595959; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  section + section { break-before: page; }
  .pictures { display: block; } figure { width: 48%; display: inline-block; margin: 0 1% 1rem 0; }
  a { color: inherit; text-decoration: none; }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if beside is not none %}
<section>
<h2>Side by side</h2>
{% if beside.rows %}
<table>
<thead><tr>{% for head in beside.rows[0] %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in beside.rows %}
<tr>{% for head, cell in row.items() %}<td data-head="{{ head }}">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% endif %}
<p class="key">{{ beside.note }}</p>
{% if beside.picture is not none %}
<div class="pictures"><figure><h3>{{ beside.picture.title }}</h3>
<img src="{{ beside_source }}" alt="{{ beside.picture.text }}">
<figcaption>{{ beside.picture.reading }}</figcaption></figure></div>
{% endif %}
<h3>Verdicts beside each other</h3>
<table>
<thead><tr><th>what</th>
{% for entry in entries %}
<th>{{ entry.name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in verdicts %}
<tr><td>{{ row.name }}</td>
{% for cell in row.cells %}
<td data-head="{{ entries[loop.index0].name }}">{% if cell is none %}–{% else %}
<span class="v {{ cell.verdict | replace(' ', '-') }}">{{ cell.verdict }}</span>
{{ cell.formatted if cell.value is not none else "" }}{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</section>
{% endif %}
{% for entry in entries %}
<section id="{{ entry.id }}">
<h2>{{ entry.title }}{% if entry.name != entry.title %} <small>({{ entry.name }})</small>
{% endif %}</h2>
<p>{% for verdict, number in entry.counts.items() %}
<span class="v {{ verdict | replace(' ', '-') }}">{{ number }} {{ verdict }}</span>
{% if not loop.last %} · {% endif %}
{% endfor %}</p>
<table>
<thead><tr><th>verdict</th><th>what</th><th>figure</th><th>threshold</th>
<th>why, and what to do</th></tr></thead>
<tbody>
{% for row in entry.findings %}
{% if loop.first or row.question != entry.findings[loop.index0 - 1].question %}
<tr class="question"><th colspan="5" scope="rowgroup">{{ row.question }}</th></tr>
{% endif %}
<tr><td class="v {{ row.verdict | replace(' ', '-') }}">{{ row.verdict }}</td>
<td>{{ row.name }}</td><td class="figure">{{ row.formatted }}</td>
<td>{{ row.threshold }}{% if row.source %}<br><small>{{ row.source }}</small>{% endif %}</td>
<td>{{ row.why }} <strong>{{ row.remedy }}</strong></td></tr>
{% endfor %}
</tbody>
</table>
<div class="pictures">
{% for picture, source in entry.pictures %}
<figure><h3>{{ picture.title }}</h3><img src="{{ source }}" alt="{{ picture.text }}">
<figcaption>{{ picture.reading }} {{ picture.text }}</figcaption></figure>
{% endfor %}
</div>
<h3>What was run</h3>
<table><tbody>
{% for name, value in entry.facts.items() %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</tbody></table>
</section>
{% endfor %}
</body>
</html>
"""
