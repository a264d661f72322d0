"""A diagnosis on a terminal: how far it has come, and its table.

Progress is a bar on a terminal, plain lines elsewhere, on standard error. The table is two
columns, verdict and figure, so that 60 characters are enough; reasons, thresholds and remedies
stand only where something is to be done or nothing could be said.
"""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppl_lvm.diagnostics.finding import VERDICTS, Finding

STYLES = {"good": "green", "warning": "yellow", "bad": "bold red", "unknown": "dim"}
MARKS = {"good": "good", "warning": "LOOK", "bad": "BAD", "unknown": "?"}


def table(findings: Sequence[Finding]) -> Group:
    """Verdicts first, then each question's rows; what to do only where it is not good."""
    counts = {v: sum(f.verdict == v for f in findings) for v in VERDICTS}
    words = Text("Can this fit be trusted? ", style="bold")
    words.append(", ".join(f"{n} {v}" for v, n in counts.items() if n))
    parts: list[RenderableType] = [words]
    for question in dict.fromkeys(f.question for f in findings):
        parts += [Text(""), Text(question, style="bold")]
        rows = Table.grid(padding=(0, 2))
        rows.add_column(no_wrap=True, min_width=4)
        rows.add_column()
        for finding in findings:
            if finding.question == question:
                mark = Text(MARKS[finding.verdict], style=STYLES[finding.verdict])
                rows.add_row(mark, _words(finding))
        parts.append(rows)
    return Group(*parts)


def _words(finding: Finding) -> Text:
    """What a row says: name and figure, and why and what to do unless it is good."""
    text = Text(finding.name)
    if finding.value is not None:
        text.append(": ").append(finding.figure, style="bold")
    if finding.verdict != "good":
        if finding.threshold:
            text.append(f" ({finding.threshold})")
        if finding.why:
            text.append(f"\n{finding.why}", style="dim" if finding.value is None else "")
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style="italic")
    return text
