"""Write a model, its guide and their tests.

    new("topics")                    from the template
    new("topics", like="gmm")        from a bundled model

The files run as they are. The template is a package of real modules that our tests run; a bundled
model is copied from its installed file. Only names and the example batch are replaced.
"""

import importlib
import importlib.util
import inspect
import keyword
import pkgutil
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from ppl_lvm.checks.pair_check import check
from ppl_lvm.core.messages import unknown
from ppl_lvm.programs.loading import load_program
from ppl_lvm.programs.sources import DEFAULT_GUIDE
from ppl_lvm.scaffold import template
from ppl_lvm.scaffold.example_batches import EXAMPLES, ExampleBatch

MODELS = "ppl_lvm.models"
IDENTIFIER = r"[a-z][a-z0-9_]*"


def new(name: str, like: str | None = None, directory: str | Path = ".") -> list[Path]:
    """Write `name`.py, `name`_guide.py, test_`name`.py and README-`name`.md; return their paths.

    Args:
        name: of the files, in lower case; `topic_model` names the class `TopicModel`.
        like: file name of a bundled model (gmm, vae, …), or the address of any model.
        directory: folder of the files.

    Raises:
        ValueError: the name is not valid, a file exists (then none is written), or the model
            cannot be copied to a single file.
    """
    folder = Path(directory).expanduser()
    names = (f"{name}.py", f"{name}_guide.py", f"test_{name}.py", f"README-{name}.md")
    existing = [folder / file for file in names if (folder / file).exists()]
    if existing:
        raise ValueError(
            f"{existing[0]} exists and is not overwritten. Choose another name or directory."
        )
    _check_name(name)
    texts = _from_template(name) if like is None else _from_model(name, like)
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in zip(names, texts, strict=True):
        (folder / file).write_text(text)
    return [folder / file for file in names]


def bundled_models() -> dict[str, str]:
    """File name of each bundled model -> its address."""
    package = importlib.import_module(MODELS)
    addresses: dict[str, str] = {}
    for exported in package.__all__:
        module = getattr(package, exported).__module__
        addresses.setdefault(module.rpartition(".")[2], f"{module}:{exported}")
    return addresses


def _check_name(name: str) -> None:
    if not re.fullmatch(IDENTIFIER, name) or keyword.iskeyword(name):
        plain = re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower().strip("_")
        hint = f": {plain}" if re.fullmatch(IDENTIFIER, plain) else ""
        raise ValueError(
            f"{name!r} cannot be the name of a module. Use lower-case letters, digits and _{hint}."
        )
    if importlib.util.find_spec(name) is not None:
        raise ValueError(
            f"A module {name} exists; {name}.py would hide it from the programs in its folder. "
            "Choose another name."
        )


def _class_name(name: str) -> str:
    """topic_model -> TopicModel, and mymodel -> MyModel."""
    words = re.sub(r"(?<=[a-z])model$", "_model", name).split("_")
    return "".join(word.capitalize() for word in words)


def _address(like: str) -> str:
    """The address of a bundled model: by its file, its class, or a unique part of its file name."""
    if ":" in like:
        return like
    addresses = bundled_models()
    if like in addresses:
        return addresses[like]
    by_class = [a for a in addresses.values() if like == a.rpartition(":")[2]]
    candidates = by_class or [a for file, a in addresses.items() if like in file.split("_")]
    if len(candidates) == 1:
        return candidates[0]
    package = importlib.import_module(MODELS)
    for entry in pkgutil.walk_packages(package.__path__, f"{MODELS}."):
        if entry.name.rpartition(".")[2] == like:
            raise ValueError(
                f"{entry.name} holds no model, but parts of others. Choose from "
                f"{', '.join(sorted(addresses))}."
            )
    raise ValueError(unknown("model", like, addresses))


def _from_template(name: str) -> list[str]:
    """Texts of the four files of a new pair."""
    modules = {"model": name, "guide": f"{name}_guide"}
    guide = f"{_class_name(name)}Guide"
    texts = [_filled(file, name, modules) for file in ("model", "guide", "test_model")]
    return [*texts, _readme(name, guide, EXAMPLES[0])]


def _from_model(name: str, like: str) -> list[str]:
    """Texts of the four files for a copy of an existing model."""
    model = load_program(_address(like))
    source = _source_file(model, like)
    example = _example_for(model, like)
    modules = {"model": name, "default_guide": f"{name}_guide"}
    return [
        re.sub(rf"\b{model.__name__}\b", _class_name(name), source),
        _filled("default_guide", name, modules),
        _filled("test_copy", name, modules).replace(EXAMPLES[0].code, example.code),
        _readme(name, f"{name}_guide", example),
    ]


def _filled(file: str, name: str, modules: dict[str, str]) -> str:
    """A file of the template with its names and imports replaced."""
    text = (files(template) / f"{file}.py").read_text()
    for module, written in modules.items():
        text = text.replace(f"{template.__name__}.{module} ", f"{written} ")
    text = text.replace("Template", _class_name(name)).replace("template", name)
    return _group_imports(text, name)


def _group_imports(text: str, name: str) -> str:
    """The imports of the new files in a separate paragraph, as linters require."""
    lines = text.splitlines(True)
    local = [line for line in lines if line.startswith(f"from {name}")]
    others = [line for line in lines if line not in local]
    last = max(i for i, line in enumerate(others) if line.startswith(("from ", "import ")))
    local = ["\n", *sorted(local)] if local else []
    return "".join([*others[: last + 1], *local, *others[last + 1 :]])


def _source_file(model: Any, like: str) -> str:
    """Text of the file of `model`.

    Raises:
        ValueError: `model` is not a class, or its file imports others by relative imports.
    """
    if not inspect.isclass(model):
        raise ValueError(f"--like {like}: a model to start from is a class, and this is not one.")
    source = Path(inspect.getfile(model)).read_text()
    if re.search(r"^\s*(from|import)\s+\.", source, re.MULTILINE):
        raise ValueError(
            f"{like} does not stand alone: it imports files of its folder by a relative import. "
            "Copy its folder instead."
        )
    return source


def _example_for(model: Any, like: str) -> ExampleBatch:
    """The first kind of data on which the model runs with the default guide."""
    guide = load_program(DEFAULT_GUIDE)
    reasons = []
    for example in EXAMPLES:
        batch = example.make()
        try:
            instance = model()
            if hasattr(instance, "initialize"):
                instance.initialize(*batch)
            issues = check(instance, guide(instance, *batch), *batch)
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            reasons.append(f"{example.name}: {str(error).splitlines()[0]}")
            continue
        if issues.ok:
            return example
        reasons.append(f"{example.name}: {issues.errors[0].message}")
    raise ValueError(
        f"--like {like} does not stand alone: it runs on none of the example batches.\n"
        + "\n".join(reasons)
    )


def _readme(name: str, guide: str, example: ExampleBatch) -> str:
    title, data = _class_name(name), f"--data {example.source}"
    model, guide = f"{name}.py:{title}", f"{name}_guide.py:{guide}"
    return f"""# {title}

The model is in `{name}.py`, its guide in `{name}_guide.py`; both are Pyro programs for
{example.name}.

    pytest test_{name}.py
    ppl-lvm show {model} {data}
    ppl-lvm check {model} --guide {guide} {data}
    ppl-lvm fit {model} --guide {guide} {data}
    ppl-lvm diagnose runs/{title}-{Path(example.source).stem}-1 --trust
"""
