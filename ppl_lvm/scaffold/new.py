"""A pair to start from: files of a model, its guide and their test, that run as they are.

    new("topics")                    from the template beside this file
    new("topics", like="gmm")        from a model of ours

Nothing is kept twice: the template is a module that our tests run, and a model of ours is copied
from where it is installed. Only names are changed.
"""

import importlib
import importlib.resources
import importlib.util
import inspect
import keyword
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppl_lvm.checks import check
from ppl_lvm.programs.loading import load_program
from ppl_lvm.scaffold.example_batches import CANDIDATES, Candidate

MODELS = "ppl_lvm.models"
TEMPLATE = "ppl_lvm.scaffold.template"
GUIDE = "ppl_lvm.guides:auto_guide"


def new(name: str, like: str | None = None, directory: str | Path = ".") -> list[Path]:
    """Write `name`.py, `name`_guide.py, test_`name`.py and README-`name`.md; return their paths.

    Args:
        name: of the files, in lower case: the class takes it in capitals, `topic_model` becomes
            `TopicModel`.
        like: the file of ours to start from (gmm, vae, …), or the address of any model.
        directory: where to write.

    Raises:
        ValueError: a name that cannot be one, a file that is there already (none is written
            then), or a model that does not stand alone in a file.
    """
    folder = Path(directory).expanduser()
    names = (f"{name}.py", f"{name}_guide.py", f"test_{name}.py", f"README-{name}.md")
    there = [folder / file for file in names if (folder / file).exists()]
    if there:
        raise ValueError(
            f"{there[0]} is there already and is not overwritten. Choose another name or directory."
        )
    _check_name(name)
    make = _from_template(name) if like is None else _from_ours(name, like)
    files = dict(zip(names, make, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text)
    return [folder / file for file in files]


def offered() -> dict[str, str]:
    """The files of ours that hold a model -> its address."""
    package = importlib.import_module(MODELS)
    found: dict[str, str] = {}
    for listed in package.__all__:
        module = getattr(package, listed).__module__
        found.setdefault(module.rpartition(".")[2], f"{module}:{listed}")
    return found


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        plain = re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower().strip("_")
        near = f": {plain}" if re.fullmatch(r"[a-z][a-z0-9_]*", plain) else ""
        raise ValueError(
            f"{name!r} cannot be the name of a module. Use lower-case letters, digits and _{near}."
        )
    if importlib.util.find_spec(name) is not None:
        raise ValueError(
            f"There is a module {name} already, which {name}.py would hide from every program "
            "beside it. Choose another name."
        )


def _title(name: str) -> str:
    """The class's name: topic_model -> TopicModel, and mymodel -> MyModel too."""
    words = re.sub(r"(?<=[a-z])model$", "_model", name).split("_")
    return "".join(word.capitalize() for word in words)


def _address(like: str) -> str:
    if ":" in like:
        return like
    addresses = offered()
    if like in addresses:
        return addresses[like]
    package = importlib.import_module(MODELS)
    # The class's name will do, and a part of the file's that no other has.
    named = [a for a in addresses.values() if like == a.rpartition(":")[2]]
    near = named or [a for file, a in addresses.items() if like in file.split("_")]
    if len(near) == 1:
        return near[0]
    if like in {found.name for found in pkgutil.iter_modules(package.__path__)}:
        raise ValueError(
            f"models/{like}.py holds no model: it is a part of others. Choose from "
            f"{', '.join(sorted(addresses))}."
        )
    raise ValueError(f"There is no model {like!r}; choose from {', '.join(sorted(addresses))}.")


def _from_template(name: str) -> Iterator[str]:
    title = _title(name)
    template = importlib.resources.files(TEMPLATE)
    for file in ("model.py", "guide.py", "test_model.py"):
        text = (template / file).read_text()
        text = text.replace(f"{TEMPLATE}.model", name).replace(f"{TEMPLATE}.guide", f"{name}_guide")
        text = text.replace("Template", title)
        yield _sorted_imports(text.replace("template", name), name)
    yield _readme(name, f"{title}Guide", CANDIDATES[0])


def _sorted_imports(text: str, name: str) -> str:
    """The imports of the new files in a paragraph of their own, as linters like it."""
    lines = text.splitlines(True)
    own = [line for line in lines if line.startswith(f"from {name}")]
    kept = [line for line in lines if line not in own]
    last = max(i for i, line in enumerate(kept) if line.startswith("from "))
    return "".join([*kept[: last + 1], *(["\n", *own] if own else []), *kept[last + 1 :]])


def _from_ours(name: str, like: str) -> Iterator[str]:
    model, title = load_program(_address(like)), _title(name)
    source = _standing_alone(model, like)
    candidate = _accepted(model, like)
    yield re.sub(rf"\b{model.__name__}\b", title, source)
    words = {"name": name, "title": title, "data": candidate.code}
    yield _COPY_GUIDE.format(**words)
    yield _COPY_TEST.format(**words)
    yield _readme(name, f"{name}_guide", candidate)


def _standing_alone(model: Any, like: str) -> str:
    """The file of `model`, if it can be copied elsewhere."""
    if not inspect.isclass(model):
        raise ValueError(f"--like {like}: a model to start from is a class, this is no class.")
    source = Path(inspect.getfile(model)).read_text()
    if re.search(r"^\s*(from|import)\s+\.", source, re.MULTILINE):
        raise ValueError(
            f"{like} does not stand alone: it imports the files beside it by a relative import. "
            "Copy its folder instead."
        )
    return source


def _accepted(model: Any, like: str) -> Candidate:
    """The first kind of data that the model takes, with the guide that will be written."""
    guide = load_program(GUIDE)
    reasons = []
    for candidate in CANDIDATES:
        batch = candidate.make()
        try:
            made = model()
            if hasattr(made, "initialize"):
                made.initialize(*batch)
            findings = check(made, guide(made, *batch), *batch)
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            reasons.append(f"{candidate.name}: {str(error).splitlines()[0]}")
            continue
        if findings.ok:
            return candidate
        reasons.append(f"{candidate.name}: {findings.errors[0].message}")
    raise ValueError(
        f"--like {like} does not stand alone: no kind of data we know runs it as it comes.\n"
        + "\n".join(reasons)
    )


def _readme(name: str, guide: str, candidate: Candidate) -> str:
    stem = Path(candidate.source).stem
    words = {"name": name, "title": _title(name), "guide": guide, "kind": candidate.name}
    return _README.format(**words, source=candidate.source, stem=stem)


_README = """# {title}

The model is in `{name}.py`, its guide in `{name}_guide.py`; both are Pyro programs of {kind}.

    pytest test_{name}.py
    ppl-lvm show {name}.py:{title} --data {source}
    ppl-lvm check {name}.py:{title} --guide {name}_guide.py:{guide} --data {source}
    ppl-lvm fit {name}.py:{title} --guide {name}_guide.py:{guide} --data {source}
    ppl-lvm diagnose runs/{title}-{stem}-1
"""

_COPY_GUIDE = '''"""The guide of {title}: the default one. Write your own in its place."""

from typing import Any

from ppl_lvm.guides import auto_guide


def {name}_guide(model: Any, *batch: Any) -> Any:
    """A program with the model's call signature, which draws the sites the model leaves open."""
    return auto_guide(model, *batch)
'''

_COPY_TEST = '''"""{title}: does the pair fit together, and does it learn?"""

import math
from typing import Any

import pyro
import torch

from ppl_lvm.checks import check
from ppl_lvm.fitting.svi import fit

from {name} import {title}
from {name}_guide import {name}_guide


def rows() -> tuple[Any, ...]:
    """What the model takes: put some of your own here."""
    pyro.set_rng_seed(0)
{data}


def test_the_guide_fits_the_model() -> None:
    model, batch = {title}(), rows()
    if hasattr(model, "initialize"):
        model.initialize(*batch)
    findings = check(model, {name}_guide(model, *batch), *batch)
    assert findings.ok, findings


def test_a_fit_raises_the_bound() -> None:
    run = fit({title}, {name}_guide, rows(), num_steps=30, progress=False)
    first, last = (sum(run.history["bound"][i : i + 10]) for i in (0, 20))
    assert math.isfinite(last)
    assert last > first
'''
