"""Terminal table of a diagnosis.

Two columns, verdict and value, so that 60 characters are enough. Reasons, thresholds and remedies
are printed only for rows that are not good.
"""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppl_lvm.diagnostics.finding import VERDICTS, Finding

STYLES = {"good": "green", "warning": "yellow", "bad": "bold red", "unknown": "dim"}
MARKS = {"good": "good", "warning": "WARN", "bad": "BAD", "unknown": "?"}


def table(findings: Sequence[Finding]) -> Group:
    """The number of rows per verdict, then the rows of each question."""
    counts = {v: sum(f.verdict == v for f in findings) for v in VERDICTS}
    summary = Text("Can this fit be trusted? ", style="bold")
    summary.append(", ".join(f"{n} {v}" for v, n in counts.items() if n))
    parts: list[RenderableType] = [summary]
    for question in dict.fromkeys(f.question for f in findings):
        parts += [Text(""), Text(question, style="bold")]
        rows = Table.grid(padding=(0, 2))
        rows.add_column(no_wrap=True, min_width=4)
        rows.add_column()
        for finding in findings:
            if finding.question == question:
                mark = Text(MARKS[finding.verdict], style=STYLES[finding.verdict])
                rows.add_row(mark, _row_text(finding))
        parts.append(rows)
    return Group(*parts)


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
