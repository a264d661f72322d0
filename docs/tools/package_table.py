"""Table of docs/performance.md: `python docs/tools/package_table.py packages.json`."""

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "performance.md"
BEGIN, END = "<!-- packages: begin -->", "<!-- packages: end -->"
NUMBERS = {
    "difference": "losses differ by",
    "SVI, ms": "`SVI.step`, ms",
    "times SVI": "times faster",
    "compiled, times SVI": "compiled",
    "compile, s": "compile, s",
}


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each program; a program that is not captured has the line that prevents it."""
    numbers = {key: title for key, title in NUMBERS.items() if any(row[key] for row in rows)}
    lines = [["package", "program", "level", *numbers.values()]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        cells = [_cell(row[key]) for key in numbers]
        reason = row["reason"].partition(": ")[0].rpartition("/")[2]
        level = f"eager: `{reason}`" if row["level"] == "eager" else row["level"]
        lines.append([row["package"], row["program"], level, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    content = table(json.loads(Path(sys.argv[1]).read_text())["rows"])
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{content}\n{END}{rest.partition(END)[2]}")
