"""Verification of faults: reported once, and removed by the remedy."""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from ppl_lvm.checks import check

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
Program = Callable[..., Any]


@pytest.fixture
def x() -> torch.Tensor:
    """Eight rows of three values."""
    return X.clone()


@pytest.fixture
def verify_fault() -> Callable[..., None]:
    """Assert that a fault is reported at its site and line, and that its remedy removes it."""
    return _verify_fault


def _verify_fault(
    model: Program,
    guide: Program,
    faulty: Program,
    code: str,
    site: str | None,
    changes: Mapping[str, str],
    remedy: str,
    *batch: Any,
) -> None:
    """Verify the fault `code` of `faulty`, one of the two programs.

    `changes` are replacements in its source that apply the remedy. `remedy` is a part of the
    issue's remedy, and of the changed source too where it is code that is not to be removed.
    """
    batch = batch or (X,)
    issues = check(model, guide, *batch)
    matching = [issue for issue in issues if issue.code == code]
    assert matching, f"{code} is not among:\n{issues}"
    first = matching[0]
    assert first.site == site
    assert site is None or repr(site) in first.message
    assert first.file == inspect.getfile(faulty)
    assert any(_contains(program, first.line) for program in (model, guide))
    assert {issue.site for issue in issues.errors} <= {site}, str(issues)
    assert first.why.endswith((".", ")"))
    assert remedy in first.remedy, first.remedy
    cured = patched(faulty, changes)
    is_code = any(sign in remedy for sign in "()[]=._")
    if is_code and remedy.split()[0] not in ("Remove", "without"):
        assert _plain(remedy) in _plain(_source(faulty, changes)), "the remedy was not applied"
    after = check(cured if model is faulty else model, cured if guide is faulty else guide, *batch)
    others = [each for each in after if each.code not in ("constant-observed", "jump")]
    assert [str(each) for each in others if each.severity != "note"] == []


def _contains(program: Program, line: int | None) -> bool:
    lines, start = inspect.getsourcelines(program)
    return line is not None and start <= line < start + len(lines)


def patched(program: Program, changes: Mapping[str, str]) -> Program:
    """The program with a changed source."""
    space = dict(program.__globals__)
    exec(compile(_source(program, changes), "<patched>", "exec"), space)
    changed: Program = space[program.__name__]
    return changed


def _source(program: Program, changes: Mapping[str, str]) -> str:
    source = textwrap.dedent(inspect.getsource(program))
    for old, new in changes.items():
        assert old in source, f"{old!r} is not in {program.__name__}"
        source = source.replace(old, new)
    return source


def _plain(text: str) -> str:
    """Text without spaces and with single quotes."""
    return "".join(text.split()).replace('"', "'")
