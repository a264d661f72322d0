"""Bad inputs: the right result, or a sentence.

A case is right if it returns, or raises an error whose message names the argument or the file in
the words of the package and whose traceback has no frame of the package.
"""

import io
import itertools
import json
import math
import os
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ppl_lvm as lvm

Outcomes = Iterator[tuple[str, str]]  # kind of a case, and what is wrong with it or ""

ROOTS = tuple(str(Path(p.__file__ or "").parent) for p in (lvm, lvm.models, lvm.guides))
ERRORS = (ValueError, TypeError, OSError, ArithmeticError)

PROGRAMS = ("_bits", "_guide", "_labeled", "_mean", "_proportions", "draw")

# Words of Python, torch and Pyro about their own arguments: no words for a user of this package.
INTERNAL = re.compile(
    r"has no attribute|unsupported operand|not subscriptable|not iterable|not callable"
    r"|unexpected keyword|positional argument|size mismatch|mat1 and mat2|The size of tensor"
    r"|invalid literal|'NoneType'|must be Tensor|dtype mismatch|out of bounds|object is not"
    r"|unhashable|could not convert|Traceback|got an? <class|expand\(|indices should be"
    r"|not supported between|a bytes-like|INTERNAL ASSERT|list index|fault of ppl-lvm"
)

WRONG: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "bool": lambda: True,
    "zero": lambda: 0,
    "negative": lambda: -3,
    "fraction": lambda: 1.5,
    "nan": lambda: math.nan,
    "infinite": lambda: math.inf,
    "huge": lambda: 10**400,
    "numpy nan": lambda: np.float32("nan"),
    "tensor": lambda: torch.tensor(-1),
    "complex": lambda: 1j,
    "text": lambda: "abc",
    "empty": lambda: "",
    "bytes": lambda: b"abc",
    "list": lambda: [object()],
    "set": lambda: {"a", "b"},
    "dictionary": lambda: {1: 2},
    "class": lambda: int,
    "object": object,
    "array": lambda: np.array([[1, "a"]], dtype=object),
}

# For arguments that are rows.
WRONG_ROWS: dict[str, Callable[[], Any]] = {
    "no rows": lambda: torch.zeros(0, 2),
    "no columns": lambda: torch.zeros(12, 0),
    "wide": lambda: torch.zeros(12, 7),
    "flat": lambda: torch.zeros(12),
    "deep": lambda: torch.zeros(3, 2, 2, 2),
    "scalar": lambda: torch.tensor(1.0),
    "missing": lambda: torch.tensor([[1.0, math.nan]] * 4),
    "infinite rows": lambda: torch.tensor([[1.0, math.inf]] * 4),
    "complex rows": lambda: torch.zeros(4, 2, dtype=torch.complex64),
    "integers": lambda: torch.zeros(4, 2, dtype=torch.int64),
    "bits": lambda: torch.zeros(4, 2, dtype=torch.bool),
    "meta": lambda: torch.zeros(4, 2, device="meta"),
    "sparse": lambda: torch.zeros(4, 2).to_sparse(),
    "ragged": lambda: [[1.0, 2.0], [3.0]],
    "lengths": lambda: (torch.zeros(4, 2), torch.zeros(3)),
    "texts": lambda: np.array([["a", "b"]]),
    "dates": lambda: np.array([["2020-01-01", "2020-01-02"]], dtype="datetime64[D]"),
    "records": lambda: np.zeros(3, dtype=[("a", float), ("b", float)]),
    "file": lambda: io.BytesIO(b"1,2\n3,4\n"),
    "generator": lambda: (row for row in ([1.0, 2.0], [3.0, 4.0])),
}


def outcome(call: Callable[[], Any], names: Sequence[str], allowed: tuple[type, ...] = ()) -> str:
    """ "" if the call is right, else what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except allowed:
        return ""
    except ERRORS as error:
        if runs_program(error):
            return ""
        frames = [f.filename for f in traceback.extract_tb(error.__traceback__)]
        inner = [f for f in frames if f.startswith(ROOTS)]
        if inner:
            return f"inner frame {inner[-1]}: {type(error).__name__}: {str(error)[:300]}"
        return fault_of(str(error), names)
    except Exception as error:
        if runs_program(error):
            return ""
        where = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        return f"{type(error).__name__} at {where[-1]}: {str(error)[:300]}"
    return ""


def runs_program(error: BaseException) -> bool:
    """True if a program of the test raised the error: the traceback shows its line."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(f.name in PROGRAMS and f.filename.endswith("public_subjects.py") for f in frames)


def fault_of(text: str, names: Sequence[str]) -> str:
    """ "" for a message that names the thing and a remedy, else what it lacks."""
    if match := INTERNAL.search(text):
        return f"words of internals ({match.group()}): {text[:300]}"
    if not any(name in text for name in names):
        return f"unnamed: {text[:300]}"
    if len(re.split(r"[.?;:]\s", text.strip().rstrip("."))) < 2:
        return f"no remedy: {text[:300]}"
    return ""


SECONDS = float(os.environ.get("ATTACK_SECONDS", "inf"))  # of CPU, of one series of cases


def problems(outcomes: Outcomes, shown: int = 60) -> str:
    """The first problems of each kind, "" if all is right; prints the counts."""
    counts, wrong = Counter[str](), Counter[str]()
    first: list[str] = []
    limit = time.process_time() + SECONDS
    for kind, problem in itertools.takewhile(lambda _: time.process_time() < limit, outcomes):
        counts[kind] += 1
        wrong[kind] += bool(problem)
        if problem and wrong[kind] <= shown:
            first.append(problem)
    print(json.dumps({kind: f"{counts[kind] - wrong[kind]} of {counts[kind]}" for kind in counts}))
    return "\n".join(first)
