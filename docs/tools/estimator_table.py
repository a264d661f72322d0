"""Table of estimators in their page: `python docs/tools/estimator_table.py`."""

import re
from pathlib import Path

from ppl_lvm import estimators

PAGE = Path(__file__).parents[1] / "estimators.md"
BEGIN, END = "<!-- estimators: begin -->", "<!-- estimators: end -->"


def table() -> str:
    """One row a class, in the order of its name."""
    titles = ["estimator", "ascends", "guide's sites", "unbiased", "bound for every K"]
    titles += ["least K", "runs a step", "paper"]
    rows = [_row(titles), "|---" * len(titles) + "|"]
    for name in sorted(estimators.__all__, key=str.lower):
        cls = getattr(estimators, name)
        rows.append(
            _row(
                [
                    f"`{name}`",
                    cls.target,
                    cls.requires,
                    "yes" if cls.unbiased else "**no**",
                    "yes" if cls().is_bound else "**no**",
                    str(cls.min_particles),
                    cls.cost,
                    _paper(cls.paper),
                ]
            )
        )
    return "\n".join(rows)


def _row(cells: list[str]) -> str:
    escaped = [cell.replace("||", "‖").replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _paper(text: str) -> str:
    """Authors and year, linked."""
    link = re.search(r"https?://\S+", text)
    label = re.sub(r"\s+", " ", text[: link.start()] if link else text).strip(" .,;")
    label = re.sub(r"(\(\d{4}\)|\b\d{4}\b).*", r"\1", label).rstrip(" ,")
    return f"[{label}]({link.group().rstrip('.,;)')})" if link else label


def updated(page: str) -> str:
    """The page's text with the table as the classes now say it."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
