"""What `check` returns: findings, each with what, why, where and the remedy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
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
        where = f" ({self.file}:{self.line})" if self.file else ""
        head = f"{self.severity} {self.code}: {self.message}{where}"
        return f"{head}\n    why: {self.why}\n    remedy: {self.remedy}"


class Findings(Sequence[Finding]):
    """Findings, errors first. `.ok` says whether none is an error."""

    def __init__(self, found: Sequence[Finding]) -> None:
        distinct = dict.fromkeys(found)
        self._found = sorted(distinct, key=lambda finding: SEVERITIES.index(finding.severity))

    @property
    def ok(self) -> bool:
        return not self.errors

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self._found if finding.severity == "error"]

    @property
    def codes(self) -> list[str]:
        return [finding.code for finding in self._found]

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    def __str__(self) -> str:
        return "\n".join(map(str, self._found)) or "Nothing found: the guide fits the model."
