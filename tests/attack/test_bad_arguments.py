"""Sentences for wrong arguments of every public callable."""

import contextlib
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_inputs import WRONG, WRONG_ROWS, Outcomes, outcome, problems
from public_subjects import Subject, subjects

ROWS = ("x", "data", "source", "held_out", "z", "attribute", "target", "batch", "weights")
ROWS += ("exposure", "args", "values", "rows", "index")


def cases(subject: Subject) -> Iterator[tuple[str, str]]:
    """Each argument with each wrong value, and with its name misspelled."""
    for parameter in subject.parameters:
        for wrong in [*WRONG, *(WRONG_ROWS if parameter in ROWS else ())]:
            yield parameter, wrong
        if subject.name != "Data.batch":  # called at every step: Python reads its arguments
            yield f"{parameter}q", "zero"


def judge(subject: Subject, parameter: str, wrong: str) -> str:
    """Fault of the outcome of a call with one wrong argument."""
    value = {**WRONG, **WRONG_ROWS}[wrong]()
    names = [parameter, repr(value)]
    if parameter in ROWS and isinstance(value, str) and value:
        names.append(value)  # a path
    if parameter in ROWS:  # data are named by their type, and their rows by the program
        names += [
            "the tensor",
            "the array",
            "the tuple",
            "the list",
            "columns",
            "rows of",
            "takes rows",
            "takes sequences",
            "the batch",
            "Site",
        ]
    problem = outcome(lambda: subject.call(**{parameter: value}), names)
    return f"{subject.name}({parameter}={wrong}): {problem}" if problem else ""


def wrong_arguments(
    folder: Path, rng: random.Random, count: int | None, *packages: str
) -> Outcomes:
    """Outcomes of calls with one wrong argument; of `count` of them, or of all."""
    entries = [(s, p, w) for s in subjects(folder, *packages) for p, w in cases(s)]
    rng.shuffle(entries)
    with contextlib.chdir(folder):
        for subject, parameter, wrong in entries[:count]:
            kind = re.sub(r"\.[a-z_]+$", "", subject.name)
            yield kind, judge(subject, parameter, wrong)


@pytest.mark.attack
def test_wrong_arguments_have_sentences(tmp_path: Path) -> None:
    assert problems(wrong_arguments(tmp_path, random.Random(0), None)) == ""


@pytest.mark.attack
def test_right_arguments_are_accepted(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        assert (
            problems((s.name, outcome(s.call, [""]) and s.name) for s in subjects(tmp_path)) == ""
        )


@pytest.mark.parametrize(
    ("name", "parameter", "wrong"),
    [
        ("divergences.as_target", "target", "lengths"),
        ("divergences.as_target", "target", "meta"),
        ("divergences.fit_divergence", "family", "dictionary"),
        ("divergences.fit_divergence", "num_draws", "huge"),
        ("divergences.fit_divergence", "optimizer", "class"),
        ("authoring.without_missing", "xq", "zero"),
        ("authoring.signature", "batch", "meta"),
        ("guides.label_free", "batch", "scalar"),
        ("guides.SemiAmortized", "batch", "integers"),
        ("guides.AmortizedNormal", "batch", "sparse"),
        ("guides.AmortizedRecurrent", "batch", "wide"),
        ("guides.ForwardProcess", "model", "zero"),
        ("nn.ColumnUnits", "columns", "tensor"),
        ("testing.check_guide", "guide", "bytes"),
        ("testing.check_model", "batch", "no rows"),
    ],
)
def test_argument_of_another_kind_has_a_sentence(
    name: str, parameter: str, wrong: str, tmp_path: Path
) -> None:
    subject = next(s for s in subjects(tmp_path, name) if s.name == name)
    assert judge(subject, parameter, wrong) == ""


def test_some_wrong_arguments_have_sentences(tmp_path: Path) -> None:
    packages = ("models", "nn", "estimators", "divergences.M", "authoring")
    assert problems(wrong_arguments(tmp_path, random.Random(4), 150, *packages)) == ""
