"""Terminal table of a diagnosis.

Two columns, verdict and value, so that 60 characters are enough. Reasons, thresholds and remedies
are printed only for rows that are not good. Rows that do not apply to the fit share one line.
"""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppl_lvm.diagnostics.finding import VERDICTS, Finding

STYLES = {
    "good": "green",
    "warning": "yellow",
    "bad": "bold red",
    "unknown": "dim",
    "exact": "green",
    "not applicable": "dim",
}
MARKS = {"good": "good", "warning": "WARN", "bad": "BAD", "unknown": "?", "exact": "exact"}


def table(findings: Sequence[Finding]) -> Group:
    """The number of rows per verdict, then the rows of each question."""
    counts = {v: sum(f.verdict == v for f in findings) for v in VERDICTS}
    summary = Text("Can this fit be trusted? ", style="bold")
    summary.append(", ".join(f"{n} {v}" for v, n in counts.items() if n))
    parts: list[RenderableType] = [summary]
    shown = [f for f in findings if f.verdict != "not applicable"]
    for question in dict.fromkeys(f.question for f in shown):
        parts += [Text(""), Text(question, style="bold")]
        rows = Table.grid(padding=(0, 2))
        rows.add_column(no_wrap=True, min_width=4)
        rows.add_column()
        for finding in shown:
            if finding.question == question:
                mark = Text(MARKS[finding.verdict], style=STYLES[finding.verdict])
                rows.add_row(mark, _row_text(finding))
        parts.append(rows)
    if line := not_applicable(findings):
        parts += [Text(""), Text(line, style="dim")]
    return Group(*parts)


def not_applicable(findings: Sequence[Finding]) -> str:
    """One line of all rows that do not apply, by reason; else empty."""
    by_reason: dict[str, list[str]] = {}
    for f in findings:
        if f.verdict == "not applicable":
            by_reason.setdefault(f.why.rstrip("."), []).append(f.name)
    parts = [f"{', '.join(names)} ({why})" for why, names in by_reason.items()]
    return f"Not applicable: {'; '.join(parts)}." if parts else ""


def _row_text(finding: Finding) -> Text:
    """Name and value; unless good, also the threshold, the reason and the remedy."""
    text = Text(finding.name)
    if finding.value is not None:
        text.append(": ").append(finding.formatted, style="bold")
    if finding.verdict != "good":
        if finding.threshold:
            text.append(f" ({finding.threshold})")
        if finding.why:
            text.append(f"\n{finding.why}", style="dim" if finding.value is None else "")
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style="italic")
    return text
