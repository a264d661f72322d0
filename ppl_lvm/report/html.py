"""A report in one HTML file: verdicts first, then pictures; opens without a network.

    page = html([Entry("VAE on digits", {"bound": "-18.5"}, diagnosis, pictures)])

Pictures are inlined as SVG behind `<img>` with a text alternative. No script, no font, no link:
nothing is requested. One column on a phone, page breaks between sections in print.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure

from ppl_lvm.checkpoint import write_atomic
from ppl_lvm.diagnostics.diagnose import Diagnosis
from ppl_lvm.report.diagnosis import Picture


@dataclass(frozen=True)
class Entry:
    """One run of the report: its title, what was run, its table and its pictures."""

    title: str
    facts: Mapping[str, str]
    diagnosis: Diagnosis
    pictures: Sequence[Picture]


def html(entries: Sequence[Entry], title: str = "Can this fit be trusted?") -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    shown = [
        {
            "title": entry.title,
            "facts": entry.facts,
            "counts": {v: n for v, n in entry.diagnosis.counts().items() if n},
            "findings": entry.diagnosis.findings,
            "pictures": [(p, inline(p.figure)) for p in entry.pictures],
        }
        for entry in entries
    ]
    return environment.from_string(_PAGE).render(title=title, entries=shown)


def inline(figure: Figure) -> str:
    """A figure as the source of an image: SVG, base64."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "ppl_lvm"}):  # the same figure gives the same bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def write(entries: Sequence[Entry], path: str | Path) -> None:
    """Write the page; a reader never sees half of it."""
    write_atomic(Path(path), html(entries).encode())


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
.good { color: #00664a; } .look { color: #8a5a00; } .bad { color: #b00020; }
.cannot-say { color: #595959; }
.pictures { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); }
figure { margin: 0; } img { width: 100%; height: auto; } figcaption { font-size: .9rem; }
@media (max-width: 40rem) {
  thead { position: absolute; left: -999rem; }
  tr { display: block; border-bottom: 1px solid #ddd; padding: .5rem 0; }
  td { display: block; border: 0; padding: .1rem 0; }
}
@media print { figure, tr { break-inside: avoid; } body { max-width: none; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for entry in entries %}
<section>
<h2>{{ entry.title }}</h2>
<p>{% for verdict, number in entry.counts.items() %}
<span class="v {{ verdict | replace(' ', '-') }}">{{ number }} {{ verdict }}</span>
{% if not loop.last %} · {% endif %}
{% endfor %}</p>
<table>
<thead><tr><th>verdict</th><th>what</th><th>figure</th><th>threshold</th>
<th>why, and what to do</th></tr></thead>
<tbody>
{% for row in entry.findings %}
<tr><td class="v {{ row.verdict | replace(' ', '-') }}">{{ row.verdict }}</td>
<td><small>{{ row.question }}</small><br>{{ row.name }}</td><td class="figure">{{ row.figure }}</td>
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
