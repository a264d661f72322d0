"""Tables of docs/posteriors.md: `python docs/tools/posterior_table.py posteriors.json`."""

import json
import sys
from pathlib import Path
from typing import Any

from ppl_lvm.benchmarks.posteriors import counts

PAGE = Path(__file__).parents[1] / "posteriors.md"
BEGIN, END = "<!-- posteriors: begin -->", "<!-- posteriors: end -->"
COLUMNS = {
    "posterior": "posterior",
    "worst mean, sd": "worst mean, sd",
    "least sd ratio": "sd ratio from",
    "largest sd ratio": "to",
    "gradients": "gradients",
    "CPU seconds": "CPU seconds",
    "verdict": "verdict",
}


def tables(rows: list[dict[str, Any]]) -> str:
    """By method, and by posterior those of `method="auto"`."""
    auto = [row for row in rows if row["method"] == "auto" and "outcome" in row]
    auto = [{title: row[key] for key, title in COLUMNS.items()} for row in auto]
    return "\n\n".join(_table(part) for part in (counts(rows), auto))


def _table(rows: list[Any]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    content = tables(json.loads(Path(sys.argv[1]).read_text())["posteriors"])
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{content}\n{END}{rest.partition(END)[2]}")
