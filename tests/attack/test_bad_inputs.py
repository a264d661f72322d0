"""Bad inputs: the right result or a sentence with remedy.

Cases come from seeded generators: values of the wrong type or out of range for every parameter of
every public callable, and files of every format with damaged bytes and fields. A case is right if
it returns, or raises an error whose message names the argument or the file and whose traceback has
no frame of this package. Data that load are those that NumPy or pandas read from the same bytes.
"""

import inspect
import math
import random
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import ppl_lvm as lvm
from ppl_lvm import load_data

PACKAGE = str(Path(lvm.__file__).parent)
ROOT = str(Path(lvm.models.__file__).parent.parent)
ERRORS = (ValueError, TypeError, OSError)
X = torch.linspace(-1.0, 1.0, 24).reshape(12, 2)

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


def outcome(call: Callable[[], Any], names: tuple[str, ...]) -> str:
    """ "" if the call is right, else what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except ERRORS as error:
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        inner = [f for f in files if f.startswith((PACKAGE, f"{ROOT}/models", f"{ROOT}/guides"))]
        text = str(error)
        if inner:
            return f"inner frame {inner[-1]}: {type(error).__name__}: {text[:150]}"
        if not any(name in text for name in names):
            return f"unnamed: {text[:150]}"
        if len(text.rstrip(".?").split(". ")) < 2 and "?" not in text:
            return f"no remedy: {text[:150]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    return ""


def _callables() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Public callables with arguments that are right."""
    pair: Any = lvm.models.PPCA(1)
    for package in (lvm.models, lvm.estimators):
        for name in package.__all__:
            yield name, getattr(package, name), {}
    guides = {n: getattr(lvm.guides, n) for n in lvm.guides.__all__}
    for name, guide in guides.items():
        if name.startswith("Amortized") and "model" in inspect.signature(guide).parameters:
            yield name, lambda *a, _g=guide, **k: _g(k.pop("model", pair), X, **k), {"": guide}
    yield "MLP", lvm.nn.MLP, {"inputs": 2, "outputs": 1}
    yield "SetEncoder", lvm.nn.SetEncoder, {"inputs": 2, "outputs": 1}
    yield "PartialEncoder", lvm.nn.PartialEncoder, {"columns": 2, "outputs": 1}
    yield "MixedColumns", lvm.nn.MixedColumns, {"columns": 2, "categories": {}}
    yield "ConvEncoder", lvm.nn.ConvEncoder, {"image_shape": (8, 8), "outputs": 1}
    yield "MMD", lvm.divergences.MMD, {}
    yield "RenyiDivergence", lvm.divergences.RenyiDivergence, {}
    yield "Grid", lvm.divergences.Grid, {"low": (0.0,), "high": (1.0,)}
    yield "load_data", load_data, {"source": X.numpy()}
    yield "signature", lvm.signature, {"model": pair}
    yield "compare", lvm.compare, {"runs": []}
    fits = {"num_steps": 1, "progress": False}
    yield "fit", lvm.fit, {"model": pair, "guide": None, "data": X, **fits}
    yield "fit_em", lvm.fit_em, {"model": pair, "data": X, "max_iterations": 1}
    mcem = {"max_iterations": 1, "num_draws": 1, "warmup": 1, "guide_steps": 1, "progress": False}
    yield "fit_mcem", lvm.fit_mcem, {"model": pair, "data": X, **mcem}


def wrong_arguments(rng: random.Random, count: int) -> Iterator[tuple[str, str]]:
    """Outcome of calls with one wrong argument or one misspelled name."""
    entries = []
    for name, function, right in _callables():
        source = right.pop("", function)
        parameters = inspect.signature(source).parameters
        open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        for parameter in parameters:
            if parameters[parameter].kind not in open_ended:
                entries += [(name, function, right, parameter, wrong) for wrong in WRONG]
    rng.shuffle(entries)
    for n in range(count):
        name, function, right, parameter, wrong = entries[n % len(entries)]
        if n >= len(entries):
            parameter = parameter[:-1] + rng.choice("xq_z")
        arguments = {**right, parameter: WRONG[wrong]()}
        if parameter == "directory" and isinstance(arguments[parameter], str):
            continue
        names = (parameter, name, repr(arguments[parameter]))
        problem = outcome(lambda f=function, a=arguments: f(**a), names)
        yield "arguments", f"{name}({parameter}={wrong}): {problem}" if problem else ""


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


FIELDS = [
    "1_000",
    "２",
    "١٢",
    "2020_01_15",
    "inf",
    "1e999",
    "",
    "abc",
    '"',
    "\0",
    "0x1",
    "1,5",
    "é",
]


def _damage(content: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(5)
    position = rng.randrange(len(content))
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
        if path.suffix == ".parquet":
            return pd.read_parquet(path).to_numpy()
        separator = {".csv": ",", ".tsv": "\t", ".txt": " "}[path.suffix]
        header = None if path.suffix == ".txt" else 0
        return pd.read_csv(path, sep=separator, header=header).to_numpy(dtype=float)
    except Exception:
        return None


def damaged_files(rng: random.Random, count: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Outcome of loading files of every format with damaged bytes or fields."""
    right = _files(folder)
    for n in range(count):
        suffix = sorted(right)[n % len(right)]
        path = folder / f"damaged{suffix}"
        path.write_bytes(_damage(right[suffix], rng))
        loaded: list[Any] = []
        problem = outcome(lambda p=path, out=loaded: out.append(load_data(str(p))), ("damaged",))
        if loaded and not problem and suffix in (".npy", ".npz", ".parquet"):
            expected = _reference(path)
            same = expected is not None and np.allclose(
                loaded[0].tensors[0].numpy(), np.asarray(expected, np.float32), equal_nan=True
            )
            problem = "" if same else "other values than NumPy or pandas read"
        yield suffix, f"{path.read_bytes()[:60]!r}: {problem}" if problem else ""


def texts_as_numbers(rng: random.Random, count: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Fields that are no numbers in ASCII are never loaded as numbers."""
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


def mutated_programs(rng: random.Random, count: int) -> Iterator[tuple[str, str]]:
    """Outcome of one step of programs with dropped plates, other names, shapes and typos."""
    import pyro
    from pyro.distributions import Normal

    sizes = ("len(x)", "len(x) + 1", "1", "3")
    for n in range(count):
        plate, site = rng.choice(["data", "rows", ""]), rng.choice(["z", "x", "zz"])
        size, event, dim = rng.choice(sizes), rng.choice([0, 1, 2]), rng.choice([-1, -2])
        obs = rng.choice(["x", "x[:1]", "x[0]", "x.T", "None", "y"])

        def model(x: Any, p: Any = plate, s: Any = (site, size, event, dim, obs)) -> None:
            name, rows, to_event, at, observed = s
            z = None
            if p:
                with pyro.plate(p, eval(rows, {"x": x, "len": len}), dim=at):
                    z = pyro.sample(name, Normal(torch.zeros(2), 1.0).to_event(to_event))
                    value = eval(observed, {"x": x})
                    pyro.sample("x", Normal(z, 1.0).to_event(to_event), obs=value)
            else:
                z = pyro.sample(name, Normal(torch.zeros(len(x), 2), 1.0).to_event(to_event))
                pyro.sample("x", Normal(z, 1.0).to_event(to_event), obs=x)

        problem = outcome(lambda m=model: lvm.fit(m, None, X, num_steps=1, progress=False), ("",))
        yield "programs", f"{n}: {plate, site, size, event, dim, obs}: {problem}" if problem else ""


def problems(outcomes: Iterator[tuple[str, str]]) -> str:
    """The first problems of each class, "" if all is right; prints the counts."""
    counts, wrong = Counter[str](), Counter[str]()
    shown: list[str] = []
    for kind, problem in outcomes:
        counts[kind] += 1
        wrong[kind] += bool(problem)
        if problem and wrong[kind] <= 40:
            shown.append(problem)
    print({kind: f"{counts[kind] - wrong[kind]} of {counts[kind]}" for kind in counts})
    return "\n".join(shown)


@pytest.mark.attack
def test_wrong_arguments_have_sentences() -> None:
    assert problems(wrong_arguments(random.Random(0), 5000)) == ""


@pytest.mark.attack
def test_damaged_files_have_sentences(tmp_path: Path) -> None:
    assert problems(damaged_files(random.Random(1), 3000, tmp_path)) == ""


@pytest.mark.attack
def test_fields_that_are_no_numbers_are_not_loaded(tmp_path: Path) -> None:
    assert problems(texts_as_numbers(random.Random(2), 1600, tmp_path)) == ""


@pytest.mark.attack
def test_mutated_programs_have_sentences() -> None:
    assert problems(mutated_programs(random.Random(3), 400)) == ""


def test_some_wrong_arguments_and_damaged_files_have_sentences(tmp_path: Path) -> None:
    assert problems(wrong_arguments(random.Random(4), 60)) == ""
    assert problems(damaged_files(random.Random(5), 60, tmp_path)) == ""
    assert problems(texts_as_numbers(random.Random(6), 60, tmp_path)) == ""
