"""Addresses of programs: load an object, and the inverse.

    "models/vae.py:VAE"            a file and a name in it
    "ppl_lvm.models:VAE"           a module and a name in it

There is no registry: user files are treated like bundled ones.
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ppl_lvm.core.frames import is_users, traceback_frames
from ppl_lvm.core.messages import did_you_mean, reason_of

# Addresses in runs of version 0.1 -> addresses of the same programs in this version.
MOVED = {
    "ppl_lvm.guides:SharedNormal": "ppl_lvm.guides:GlobalNormal",
    "ppl_lvm.guides.shared:SharedNormal": "ppl_lvm.guides.global_normal:GlobalNormal",
    "ppl_lvm.guides:encoder_of_model": "ppl_lvm.guides:vamp_prior_guide",
    "ppl_lvm.guides.encoder_of_model:encoder_of_model": (
        "ppl_lvm.guides.vamp_prior_guide:vamp_prior_guide"
    ),
    "ppl_lvm.guides.hierarchical:BottomUp": "ppl_lvm.guides.bottom_up:BottomUp",
    "ppl_lvm.guides.hierarchical:Ladder": "ppl_lvm.guides.ladder:Ladder",
    "ppl_lvm.em:ExactPosterior": "ppl_lvm.programs.exact_posterior:ExactPosterior",
    "ppl_lvm.em.run:ExactPosterior": "ppl_lvm.programs.exact_posterior:ExactPosterior",
}


def load_program(address: str) -> Any:
    """The object at `address`, "path/file.py:Name" or "package.module:Name".

    Raises:
        ValueError: no colon, an unknown name (the available names are listed), or a module whose
            code raises an error.
        FileNotFoundError, ImportError: unknown file or module, or one that it imports.
    """
    place, colon, name = address.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(
            f"{address!r} is not an address. Write file.py:Name or package.module:Name, "
            "for example models/vae.py:VAE."
        )
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    except _ModuleError as error:
        cause = error.args[0]
        kind = type(cause) if isinstance(cause, ImportError) else ValueError
        raise kind(f"{place} cannot be loaded: {_fault(cause)}") from cause
    try:
        return getattr(module, name)
    except AttributeError:
        names = _public_names(module)
        raise ValueError(
            f"{place}: it has no {name!r}. Available: {', '.join(names)}."
            f"{did_you_mean(name, names)}"
        ) from None


class _ModuleError(Exception):
    """A module whose code raised the error in `args`."""


def _fault(error: BaseException) -> str:
    """The error of a module, its line, and a remedy."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}. Correct this line."
    lines = [
        f" (line {line} of {frame.f_code.co_filename})"
        for frame, line in traceback_frames(error)
        if is_users(frame)
    ]
    remedy = (
        "Correct it, or install what it imports."
        if isinstance(error, ImportError)
        else ("Correct it; a program file is run from top to bottom.")
    )
    return f"{reason_of(error)}{lines[-1] if lines else ''}. {remedy}"


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and not name.startswith(error.name):
            raise _ModuleError(error) from None  # the module exists, but not one that it imports
        raise ImportError(
            f"No module named {name!r}. For a file, write its path with .py: "
            f"{name.replace('.', '/')}.py:Name."
        ) from None
    except Exception as error:
        raise _ModuleError(error) from None


def _load_file(path: Path) -> ModuleType:
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        files = [str(path.parent / other.name) for other in path.parent.glob("*.py")]
        raise FileNotFoundError(f"File {path} does not exist.{did_you_mean(str(path), files)}")
    path = path.resolve()
    # One module object per file and process: classes keep their identity over several loads.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    name = f"_ppl_lvm_program_{digest}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # a program may import files of its folder
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception):
            raise _ModuleError(error) from None
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def program_file(place: str) -> Path | None:
    """The file of a module or "path/file.py", found without importing; None without one."""
    if place.endswith(".py"):
        try:
            return Path(os.path.expanduser(place)).resolve()
        except (OSError, ValueError, RuntimeError):  # too long, a null character, a loop of links
            return None
    module = sys.modules.get(place)
    if module is not None:
        file = getattr(module, "__file__", None)
        return None if file is None else Path(file).resolve()
    path, spec, parts = None, None, place.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        finders = [f for f in sys.meta_path if hasattr(f, "find_spec")]
        spec = next((s for f in finders if (s := f.find_spec(name, path)) is not None), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and count < len(parts):
            return None
    return None if spec is None or not spec.has_location else Path(str(spec.origin)).resolve()


def source_digest(address: str | None) -> str | None:
    """SHA-256 of the source file of an address; None if it cannot be read."""
    file = None if address is None else program_file(address.rpartition(":")[0])
    try:
        return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def _public_names(module: ModuleType) -> list[str]:
    """Names that `module` defines itself (or lists in __all__)."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == module.__name__
    ) or ["nothing callable"]


def address_of(program: Any) -> str | None:
    """Address of a class, a function, or an instance's class; None without an address."""
    if _is_bound(program):
        return None
    target = program if inspect.isclass(program) or inspect.isfunction(program) else type(program)
    name = target.__qualname__
    if "." in name or "<" in name:  # nested in a class or function: no address reaches it
        return None
    if target.__module__ == "__main__" or target.__module__.startswith("_ppl_lvm_program_"):
        try:
            path = Path(inspect.getfile(target)).resolve()
        except (OSError, TypeError):
            return None  # entered at a prompt
        return f"{path}:{name}" if path.is_file() else None  # a notebook's cell has a name only
    return f"{target.__module__}:{name}"


def _is_bound(program: Any) -> bool:
    return inspect.ismethod(program) or isinstance(program, partial)


def address_problem(program: Any, address: str | None) -> str | None:
    """Reason why an address does not lead to a program, with the remedy; None if it does."""
    target = program if inspect.isclass(program) or inspect.isfunction(program) else type(program)
    if _is_bound(program):
        return (
            "it is a method of an object, a partial or a handled function, which no address names. "
            "Define a function or a module that calls it"
        )
    if address is None:
        return (
            "it is defined in a function, as a lambda, at a prompt or in a notebook, where no "
            "address leads. Define it at the top of a .py file"
        )
    module = sys.modules.get(target.__module__)
    if getattr(module, target.__name__, None) is not target:
        return (
            f"{address} leads to another object, the one of this name in its module. Give the "
            "program the name by which it is defined, a decorated one by @"
        )
    script = Path(address.rpartition(":")[0])
    if target.__module__ == "__main__" and "__name__" not in script.read_text(errors="replace"):
        return (
            "loading runs its script again, the fit too. Put the fit below "
            'if __name__ == "__main__":, or the program into another file'
        )
    return None
