"""Damaged files of every format.

They load as by NumPy or pandas, or are refused in a sentence.

Bytes are damaged at random and fields one by one. Fields that are no numbers in ASCII are never
loaded as numbers. A damaged file of a run directory is named.
"""

import datetime
import decimal
import itertools
import json
import math
import random
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from bad_inputs import Outcomes, outcome, problems
from public_subjects import X

from ppl_lvm import fit, load_data, load_run
from ppl_lvm.models import PPCA

FIELDS = ["1_000", "２", "١٢", "2020_01_15", "inf", "1e999", "", "abc", '"', "\0", "0x1", "1,5"]
FIELDS += ["é", "nan", "NA", "-", "+", "1e", "--1", "1 2", "1.2.3", "TRUE", "None", "1;2", "½"]
FIELDS += ["3+4j", "$5", "5%", "1'000", "'1", "=1+1", "9" * 400, "12:30", "\ufeff1", "\u00a01"]
HEADERS = ["", "a", "a,a", "1,2", ",b", "a,b,c", '"a', "é,ü", "\ufeffa,b", "a\tb", "\0", " a , b"]


def _files(folder: Path) -> dict[str, bytes]:
    """A right file of every format, as bytes."""
    values = np.arange(12.0).reshape(6, 2)
    frame = pd.DataFrame(values, columns=["a", "b"])
    np.save(folder / "right.npy", values)
    np.savez(folder / "right.npz", x=values)
    frame.to_parquet(folder / "right.parquet")
    frame.to_csv(folder / "right.csv", index=False)
    frame.to_csv(folder / "right.tsv", index=False, sep="\t")
    np.savetxt(folder / "right.txt", values)
    return {p.suffix: p.read_bytes() for p in folder.glob("right.*")}


def _damage(content: bytes, rng: random.Random) -> bytes:
    kind, position = rng.randrange(5), rng.randrange(len(content))
    if kind == 0:
        return content[:position]
    if kind == 1:
        return content[:position] + bytes([rng.randrange(256)]) + content[position + 1 :]
    if kind == 2:
        return content[:position] + content[position + rng.randrange(1, 9) :]
    if kind == 3:
        field = rng.choice(FIELDS).encode(rng.choice(["utf-8", "utf-16", "cp500"]), "replace")
        return content[:position] + field + content[position:]
    return content + content[position:]


def _reference(path: Path) -> Any:
    """The same file by NumPy or pandas; None where they do not read it."""
    try:
        if path.suffix == ".npy":
            return np.load(path)
        if path.suffix == ".npz":
            return next(iter(np.load(path).values()))
        return pd.read_parquet(path).to_numpy()
    except Exception:
        return None


def _judge(path: Path) -> str:
    """Fault of loading a file."""
    loaded: list[Any] = []
    problem = outcome(lambda: loaded.append(load_data(str(path))), (path.stem,))
    if loaded and not problem and path.suffix in (".npy", ".npz", ".parquet"):
        expected = _reference(path)
        same = expected is not None and np.allclose(
            loaded[0].tensors[0].numpy(), np.asarray(expected, np.float32), equal_nan=True
        )
        problem = "" if same else "other values than NumPy or pandas read"
    return problem


def damaged_bytes(rng: random.Random, count: int, folder: Path) -> Outcomes:
    """Files of every format with damaged bytes."""
    right = _files(folder)
    for n in range(count):
        suffix = sorted(right)[n % len(right)]
        path = folder / f"damaged{suffix}"
        path.write_bytes(_damage(right[suffix], rng))
        problem = _judge(path)
        yield suffix, f"{path.read_bytes()[:60]!r}: {problem}" if problem else ""


def damaged_texts(folder: Path) -> Outcomes:
    """Tables with each field, and each header, replaced."""
    for suffix, separator in ((".csv", ","), (".tsv", "\t"), (".txt", " ")):
        for row, column, field in itertools.product(range(3), range(2), FIELDS):
            table = [["1", "2"], ["3", "4"], ["5", "6"]]
            table[row][column] = field
            lines = [separator.join(line) for line in table]
            head = [] if suffix == ".txt" else [f"a{separator}b"]
            path = folder / f"field{suffix}"
            path.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
            loaded: list[Any] = []
            problem = outcome(lambda p=path, out=loaded: out.append(load_data(str(p))), ("field",))
            if loaded and not problem:
                problem = _changed(loaded[0].tensors[0], table, field)
            yield (
                f"{suffix} fields",
                f"{suffix} {row, column} {field!r}: {problem}" if problem else "",
            )
        for head in HEADERS:
            path = folder / f"field{suffix}"
            path.write_text(f"{head}\n1{separator}2\n3{separator}4\n", encoding="utf-8")
            problem = outcome(lambda p=path: load_data(str(p)), ("field",))
            yield f"{suffix} headers", f"{suffix} {head!r}: {problem}" if problem else ""


def _changed(x: torch.Tensor, table: list[list[str]], field: str) -> str:
    """ "" if the loaded rows are the numbers of the table."""
    plain = field.strip().strip("\ufeff\"'")
    numeric = plain.isascii() and "_" not in plain and _is_float(plain)
    comma = _is_float(plain.replace(",", ".")) and "," in plain  # a table with decimal commas
    if not numeric and not comma:
        return f"{field!r} became {x.tolist()}"
    return ""


def texts_as_numbers(rng: random.Random, count: int, folder: Path) -> Outcomes:
    """Fields of random characters."""
    alphabet = "0123456789_eE+-.,０١٢²½ \u00a0infaxNA"
    for n in range(count):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 6)))
        path = folder / "field.csv"
        path.write_text(f'a,b\n1,"{text}"\n2,3\n', encoding="utf-8")
        loaded: list[Any] = []
        problem = outcome(lambda p=path, out=loaded: out.append(load_data(str(p))), ("field.csv",))
        plain = text.strip()
        numeric = plain.isascii() and "_" not in plain and _is_float(plain.replace(",", "."))
        if loaded and not problem and not numeric:
            problem = f"{text!r} became {loaded[0].tensors[0].tolist()}"
        yield "fields", f"{n}: {text!r}: {problem}" if problem else ""


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


DESCRIPTIONS = [
    "<f8",
    ">f8",
    "<f4",
    "<f2",
    "<i8",
    "|b1",
    "|u1",
    "<c16",
    "<U4",
    "|S4",
    "|O",
    "<M8[D]",
]
DESCRIPTIONS += ["<f16", "x", "", "|V8", "<m8[s]", ">i2", "<f0"]
SHAPES = ["(6, 2)", "(12,)", "()", "(0, 2)", "(6, 0)", "(-6, -2)", "(6.0, 2)", "6", "(10**9, 2)"]
SHAPES += ["(2, 6)", "(3, 2, 2)", "None", "(6, 3)", "(1,) * 40", "('6', 2)", "(True, 12)", "[6, 2]"]


def damaged_headers(folder: Path) -> Outcomes:
    """NumPy files with each field of the header replaced, alone and in an archive."""
    content = np.arange(12.0).tobytes()
    for description, shape, order in itertools.product(
        DESCRIPTIONS, SHAPES, ["False", "True", "1"]
    ):
        if description != "<f8" and shape != "(6, 2)":
            continue
        text = f"{{'descr': {description!r}, 'fortran_order': {order}, 'shape': {shape}}}"
        head = text.ljust(117).encode() + b"\n"
        whole = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + content
        path = folder / "header.npy"
        path.write_bytes(whole)
        problem = _judge(path)
        yield "npy header", f"{text}: {problem}" if problem else ""
        archive = folder / "header.npz"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("x.npy", whole)
        problem = _judge(archive)
        yield "npz header", f"{text}: {problem}" if problem else ""
    for names in (
        ["x"],
        ["x.txt"],
        ["a/../x.npy"],
        ["x.npy", "y"],
        [],
        ["x.npy", "x.npy"],
        [".npy"],
    ):
        with zipfile.ZipFile(archive, "w") as file:
            for name in names:
                file.writestr(name, whole)
        problem = outcome(lambda: load_data(str(archive)), ("header",))
        yield "npz members", f"{names}: {problem}" if problem else ""


COLUMNS: dict[str, Any] = {
    "text": ["a", "b"],
    "numbers as text": ["1", "2"],
    "lists": [[1], [2, 3]],
    "dates": [datetime.date(2020, 1, 1)] * 2,
    "times": pd.to_datetime(["2020-01-01", "2020-01-02"]),
    "durations": pd.to_timedelta([1, 2], "s"),
    "decimals": [decimal.Decimal("1.5"), decimal.Decimal("2.5")],
    "nullable": pd.array([1, None], dtype="Int64"),
    "categories": pd.Categorical(["u", "v"]),
    "bytes": [b"a", b"b"],
    "truth": [True, False],
    "truth with none": [True, None],
    "none": [None, None],
    "infinite": [1.0, math.inf],
    "missing": [1.0, math.nan],
    "large": [2**62 + 1, 3],
    "unsigned": np.array([2**64 - 1, 1], dtype=np.uint64),
    "records": [{"a": 1}, {"a": 2}],
}


def odd_columns(folder: Path) -> Outcomes:
    """Columns of every type in Parquet, CSV and in memory; tables without rows or names."""
    for name, column in COLUMNS.items():
        frame = pd.DataFrame({"a": [1.0, 2.0], "odd": column})
        problem = outcome(lambda f=frame: load_data(f), ("odd", "column 1"))
        yield "frame", f"frame of {name}: {problem}" if problem else ""
        for suffix, write in ((".parquet", frame.to_parquet), (".csv", frame.to_csv)):
            path = folder / f"odd{suffix}"
            write(path, index=False)
            problem = outcome(lambda p=path: load_data(str(p)), ("odd",))
            yield suffix, f"{suffix} of {name}: {problem}" if problem else ""
    for name, frame in {
        "no rows": pd.DataFrame({"a": []}),
        "no columns": pd.DataFrame(index=[0, 1]),
        "equal names": pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]),
        "number names": pd.DataFrame([[1.0, 2.0]]),
        "nested names": pd.DataFrame([[1.0]], columns=pd.MultiIndex.from_tuples([("a", "b")])),
    }.items():
        problem = outcome(lambda f=frame: load_data(f), ("DataFrame", "column", "rows"))
        yield "frame", f"frame with {name}: {problem}" if problem else ""


VALUES: list[Any] = [None, True, -1, 4321, 0.5, "x", "", [], {}, [[]], {"a": 1}, math.nan, "../x"]


def damaged_runs(rng: random.Random, count: int, folder: Path) -> Outcomes:
    """Run directories with damaged bytes in each file, and each field of the JSON replaced."""
    right, damaged = folder / "right", folder / "damaged"
    fit(PPCA(1), None, X, num_steps=3, validation=4, directory=right, progress=False)
    files = sorted(p.name for p in right.iterdir() if p.is_file())
    for n in range(count):
        name = files[n % len(files)]
        shutil.copytree(right, damaged, ignore=shutil.ignore_patterns("pictures"))
        path = damaged / name
        path.write_bytes(_damage(path.read_bytes(), rng))
        yield f"run: {name}", _load_error(damaged, right, name)
        shutil.rmtree(damaged)
    for name in (f for f in files if f.endswith(".json")):
        content = json.loads((right / name).read_text())
        for checksum in ("checksum", "files"):  # a writer of another program would omit them
            content.pop(checksum, None)
        for keys, value in itertools.product(_paths(content), [..., *rng.sample(VALUES, 4)]):
            shutil.copytree(right, damaged, ignore=shutil.ignore_patterns("pictures"))
            record = json.loads((right / "run.json").read_text())
            (damaged / "run.json").write_text(
                json.dumps({k: v for k, v in record.items() if k not in ("checksum", "files")})
            )
            (damaged / name).write_text(json.dumps(_replaced(content, keys, value)))
            problem = outcome(lambda: _use(load_run(damaged)), (name, str(damaged), "damaged"))
            yield f"field: {name}", f"{name} {keys} = {value!r}: {problem}" if problem else ""
            shutil.rmtree(damaged)


def _use(run: Any) -> None:
    repr(run), run.parameters(), run.sample(2), run.encode(X)


def _load_error(damaged: Path, right: Path, name: str) -> str:
    """A damaged file of a run is an error that names it, unless nothing reads it."""
    loaded: list[Any] = []
    problem = outcome(lambda: loaded.append(load_run(damaged)), (name, str(damaged)))
    if loaded and not problem:
        same = all(
            torch.equal(v, load_run(right).parameters()[k])
            for k, v in loaded[0].parameters().items()
        )
        problem = "" if same else "other parameters"
        changed = (damaged / name).read_bytes() != (right / name).read_bytes()
        if changed and name in ("run.json", "history.json", "parameters.safetensors"):
            problem = "damage not noticed"
    return f"{name}: {problem}" if problem else ""


def _paths(content: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys to every field, those of long lists left out."""
    entries = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content[:2])
        if isinstance(content, list)
        else ()
    )
    for key, value in entries:
        yield (*before, key)
        yield from _paths(value, (*before, key))


def _replaced(content: Any, keys: tuple[Any, ...], value: Any) -> Any:
    """A copy with one field replaced, or left out where the value is `...`."""
    changed = json.loads(json.dumps(content))
    *path, last = keys
    place = changed
    for key in path:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return changed


@pytest.mark.attack
def test_damaged_bytes_of_data_files_have_sentences(tmp_path: Path) -> None:
    assert problems(damaged_bytes(random.Random(1), 3000, tmp_path)) == ""


@pytest.mark.attack
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_damaged_fields_of_data_files_have_sentences(tmp_path: Path) -> None:
    assert problems(damaged_texts(tmp_path)) == ""
    assert problems(damaged_headers(tmp_path)) == ""
    assert problems(odd_columns(tmp_path)) == ""
    assert problems(texts_as_numbers(random.Random(2), 1600, tmp_path)) == ""


@pytest.mark.attack
def test_damaged_run_directories_have_sentences(tmp_path: Path) -> None:
    assert problems(damaged_runs(random.Random(7), 300, tmp_path)) == ""


def test_some_damaged_files_have_sentences(tmp_path: Path) -> None:
    assert problems(damaged_bytes(random.Random(5), 60, tmp_path)) == ""
    assert problems(texts_as_numbers(random.Random(6), 60, tmp_path)) == ""
