"""Issues of a pair: problem, reason, place and remedy."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppl_lvm.core.html_tables import html_paragraph, html_table

SEVERITIES = ("error", "warning", "note")
NOTHING = "Nothing found: the guide fits the model."


@dataclass(frozen=True)
class Issue:
    """One fault of a pair.

    Attributes:
        code: short name of the kind of fault, the same in every version.
        severity: "error" (the fit is wrong or does not run), "warning" (probably a mistake) or
            "note" (information).
        site: the sample site or parameter, or None for the program as a unit.
        file, line: place in the user's program, if known.
        message: the problem.
        why: its consequence.
        remedy: code or action that removes it.
    """

    code: str
    severity: str
    site: str | None
    message: str
    why: str
    remedy: str
    file: str | None = None
    line: int | None = None

    def __post_init__(self) -> None:
        assert self.severity in SEVERITIES, self.severity

    def __str__(self) -> str:
        return f"{self._head()}\n    why: {self.why}\n    remedy: {self.remedy}"

    def in_a_line(self) -> str:
        """Message and remedy, without the reason."""
        return f"{self._head()} Remedy: {' '.join(self.remedy.split())}"

    @property
    def place(self) -> str:
        """File and line in the user's program; empty if unknown."""
        return f"{_shortest(self.file)}:{self.line}" if self.file else ""

    def _head(self) -> str:
        where = f" ({self.place})" if self.file else ""
        return f"{self.severity} {self.code}: {self.message}{where}"


def _shortest(file: str) -> str:
    """Path relative to the working directory, if the file is below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


@dataclass(frozen=True)
class ObjectiveSupport:
    """Support of a pair by an objective.

    Attributes:
        name: its name in `objective=`.
        supported: whether its estimates are valid for this pair.
        why: the reason if it is not supported, or the condition if it is; empty without either.
    """

    name: str
    supported: bool
    why: str = ""


class Issues(Sequence[Issue]):
    """Issues, errors first. `.ok` is true if none is an error.

    Attributes:
        estimators: support of the pair by every objective; empty after an error.
    """

    def __init__(
        self, issues: Sequence[Issue], estimators: Sequence[ObjectiveSupport] = ()
    ) -> None:
        self.estimators = tuple(estimators)
        distinct = dict.fromkeys(issues)
        self._issues = sorted(distinct, key=lambda issue: SEVERITIES.index(issue.severity))

    @property
    def ok(self) -> bool:
        return not self.errors

    @property
    def errors(self) -> list[Issue]:
        return [issue for issue in self._issues if issue.severity == "error"]

    @property
    def codes(self) -> list[str]:
        return [issue.code for issue in self._issues]

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._issues[index]

    def __len__(self) -> int:
        return len(self._issues)

    def __iter__(self) -> Iterator[Issue]:
        return iter(self._issues)

    def to_json(self) -> dict[str, Any]:
        """The issues, and the support by every objective, as plain data."""
        return {
            "ok": self.ok,
            "issues": [asdict(issue) for issue in self._issues],
            "objectives": [asdict(objective) for objective in self.estimators],
        }

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head = ("severity", "code", "site", "problem", "why", "remedy", "place")
        rows = [
            (i.severity, i.code, i.site or "", i.message, i.why, i.remedy, i.place)
            for i in self._issues
        ]
        text = html_table(head, rows) if rows else html_paragraph(NOTHING)
        return text + (html_paragraph(_supported(self.estimators)) if self.estimators else "")

    def __str__(self) -> str:
        """The issues, and in a second paragraph the objectives that support the pair."""
        text = "\n".join(map(str, self._issues)) or NOTHING
        if self.estimators:
            text += "\n\n" + _supported(self.estimators)
        return text


def _supported(estimators: Sequence[ObjectiveSupport]) -> str:
    """The supported objectives in a list, and the others by reason or condition."""
    unconditional = ", ".join(each.name for each in estimators if each.supported and not each.why)
    lines = textwrap.wrap(
        f"Objectives that suit: {unconditional or 'none'}.", 100, subsequent_indent="    "
    )
    reasons: dict[tuple[bool, str], list[str]] = {}
    for each in estimators:
        if each.why:
            # Estimators name themselves; one reason is printed once for all of them.
            why = each.why.replace(each.name, "it", 1).strip()
            reasons.setdefault((not each.supported, why), []).append(each.name)
    for (unsupported, why), names in sorted(reasons.items()):
        head = "not" if unsupported else "only"
        text = f"{head} {', '.join(names)}: {why}"
        lines += textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)
