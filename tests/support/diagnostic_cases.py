"""Good and faulty cases of the diagnostics.

Cases are declared beside the tests of their diagnostic: `CASES` in a file of tests/diagnostics maps
the slug of a diagnostic to its `DiagnosticCases`. The contract test collects all of them.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "diagnostics"
Case = Callable[[], Any]  # returns a result with `findings()`


@dataclass(frozen=True)
class DiagnosticCases:
    """Cases that a diagnostic must grade.

    Attributes:
        good: every row of these cases is good.
        faulty: every row is warning or bad in at least one of these cases.
        ungraded: rows without a verdict, by name with "…" for values.
        never_bad: rows with the verdicts good and unknown only.
    """

    good: Sequence[Case]
    faulty: Sequence[Case]
    ungraded: frozenset[str] = frozenset()
    never_bad: frozenset[str] = frozenset()


def collect_cases() -> dict[str, DiagnosticCases]:
    """Slug -> cases, of all files in tests/diagnostics."""
    cases: dict[str, DiagnosticCases] = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(f"cases_of_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        declared = getattr(module, "CASES", {})
        assert not cases.keys() & declared.keys()
        cases |= declared
    return cases
