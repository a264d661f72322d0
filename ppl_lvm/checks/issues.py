"""What `check` returns: findings, each with what, why, where and the remedy."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Issue:
    """One thing found in a pair.

    Attributes:
        code: a short name of the kind of fault, the same in every version.
        severity: "error" (the fit is wrong or does not run), "warning" (probably not what was
            meant) or "note" (good to know).
        site: the sample site or parameter, or None if the whole program is meant.
        file, line: where in the user's program, as far as known.
        message: what was found.
        why: why it matters.
        remedy: what to write instead.
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
        """What and the remedy, without why."""
        return f"{self._head()} Remedy: {' '.join(self.remedy.split())}"

    def _head(self) -> str:
        where = f" ({_shortest(self.file)}:{self.line})" if self.file else ""
        return f"{self.severity} {self.code}: {self.message}{where}"


def _shortest(file: str) -> str:
    """A file's path from here, where it is below."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


@dataclass(frozen=True)
class ObjectiveSupport:
    """Whether an objective suits a pair.

    Attributes:
        name: the objective's, as `objective=` takes it.
        suits: whether it is what it says on this pair.
        why: why not; or on what condition it does; empty where there is nothing to say.
    """

    name: str
    supported: bool
    why: str = ""


class Issues(Sequence[Issue]):
    """Findings, errors first. `.ok` says whether none is an error.

    Attributes:
        estimators: which objectives suit the pair; empty where an error stands before that.
    """

    def __init__(self, found: Sequence[Issue], estimators: Sequence[ObjectiveSupport] = ()) -> None:
        self.estimators = tuple(estimators)
        distinct = dict.fromkeys(found)
        self._found = sorted(distinct, key=lambda finding: SEVERITIES.index(finding.severity))

    @property
    def ok(self) -> bool:
        return not self.errors

    @property
    def errors(self) -> list[Issue]:
        return [finding for finding in self._found if finding.severity == "error"]

    @property
    def codes(self) -> list[str]:
        return [finding.code for finding in self._found]

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Issue]:
        return iter(self._found)

    def __str__(self) -> str:
        """The findings, and in a paragraph of its own which objectives suit."""
        said = "\n".join(map(str, self._found)) or "Nothing found: the guide fits the model."
        if self.estimators:
            said += "\n\n" + _suitable(self.estimators)
        return said


def _suitable(estimators: Sequence[ObjectiveSupport]) -> str:
    """The objectives that suit, in a list; and those that do not or not always, by reason."""
    free = ", ".join(each.name for each in estimators if each.supported and not each.why)
    lines = textwrap.wrap(f"Objectives that suit: {free or 'none'}.", 100, subsequent_indent="    ")
    reasons: dict[tuple[bool, str], list[str]] = {}
    for each in estimators:
        if each.why:
            # Estimators say their own name; one reason is told once for all who have it.
            why = each.why.replace(each.name, "it", 1).strip()
            reasons.setdefault((not each.supported, why), []).append(each.name)
    for (not_at_all, why), names in sorted(reasons.items()):
        head = "not" if not_at_all else "only"
        text = f"{head} {', '.join(names)}: {why}"
        lines += textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)
