"""How a faulty program is judged: found, named, and mended by what its remedy says."""

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
    """Eight rows of three numbers."""
    return X.clone()


@pytest.fixture
def judge() -> Callable[..., None]:
    """A fault is found once, at its site and line, and is gone once the remedy is applied."""
    return _judge


def _judge(
    model: Program,
    guide: Program,
    faulty: Program,
    code: str,
    site: str | None,
    mend: Mapping[str, str],
    said: str,
    *batch: Any,
) -> None:
    """`faulty` is the one of the two at fault. `mend` are replacements in its source, which what
    the remedy says must lead to: `said` stands in the remedy, and in the mended source too where
    it is code, and not code to take away."""
    batch = batch or (X,)
    findings = check(model, guide, *batch)
    found = [finding for finding in findings if finding.code == code]
    assert found, f"{code} is not among:\n{findings}"
    first = found[0]
    assert first.site == site
    assert site is None or repr(site) in first.message
    assert first.file == inspect.getfile(faulty)
    assert any(_holds(program, first.line) for program in (model, guide))
    assert {finding.site for finding in findings.errors} <= {site}, str(findings)
    assert first.why.endswith((".", ")"))
    assert said in first.remedy, first.remedy
    cured = mended(faulty, mend)
    is_code = any(sign in said for sign in "()[]=._")
    if is_code and said.split()[0] not in ("Remove", "without"):
        assert _plain(said) in _plain(_source(faulty, mend)), "the remedy was not applied"
    after = check(cured if model is faulty else model, cured if guide is faulty else guide, *batch)
    assert [str(each) for each in after if each.severity != "note"] == []


def _holds(program: Program, line: int | None) -> bool:
    lines, start = inspect.getsourcelines(program)
    return line is not None and start <= line < start + len(lines)


def mended(program: Program, mend: Mapping[str, str]) -> Program:
    """The program with its source so changed."""
    space = dict(program.__globals__)
    exec(compile(_source(program, mend), "<mended>", "exec"), space)
    made: Program = space[program.__name__]
    return made


def _source(program: Program, mend: Mapping[str, str]) -> str:
    source = textwrap.dedent(inspect.getsource(program))
    for old, new in mend.items():
        assert old in source, f"{old!r} is not in {program.__name__}"
        source = source.replace(old, new)
    return source


def _plain(text: str) -> str:
    """Without spaces, and with one kind of quotes."""
    return "".join(text.split()).replace('"', "'")
