"""Identity of a run.

Two runs with equal identities take the same steps.

An identity is plain data by name. It is recorded in run.json and in every checkpoint, and compared
before either is used again.
"""

import functools
import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import pyro.optim
from torch import Tensor, nn

Identity = Mapping[str, Any]

MOST_CHARACTERS = 60  # of a value in a message


def require_same(what: str, now: Identity, before: Identity, remedy: str) -> None:
    """Raise `ValueError` with the first difference between two identities.

    An entry or option that the older identity lacks was not recorded then, and is not compared.
    """
    for key in [key for key in now if key in before]:
        new, old = now[key], before[key]
        if key == "options" and isinstance(old, Mapping):
            new = {name: value for name, value in new.items() if name in old}
        if new == old:
            continue
        names = f": {_change(old, new)}"
        if isinstance(new, Mapping) and isinstance(old, Mapping):
            parts = sorted(k for k in new if new[k] != old.get(k)) or sorted(old.keys() - new)
            names = " in " + ", ".join(f"{k} ({_change(old.get(k), new.get(k))})" for k in parts)
        raise ValueError(f"{what}: its {key} differs{names}. {remedy}")


def _change(old: Any, new: Any) -> str:
    return f"{_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def definition_digest(value: Any) -> str | None:
    """SHA-256 of what defines a function, class or object; None for plain data.

    Of a function these are its source, defaults and the plain values that it closes over; of an
    object its class and plain attributes. Tensors count by shape: they may be initial values that
    a checkpoint replaces.
    """
    if _is_plain(value):
        return None
    return hashlib.sha256(json.dumps(_parts(value, 0), sort_keys=True).encode()).hexdigest()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _parts(value: Any, depth: int) -> Any:
    """Nested plain data that two equal definitions have in common."""
    if _is_plain(value):
        return repr(value)
    if depth > 6:
        return _name(type(value))
    inner = functools.partial(_parts, depth=depth + 1)
    if isinstance(value, Tensor):
        return ["tensor", list(value.shape), str(value.dtype)]
    if isinstance(value, list | tuple):
        return [inner(part) for part in value]
    if isinstance(value, Mapping):
        return {repr(key): inner(part) for key, part in value.items()}
    if isinstance(value, functools.partial):
        return ["partial", inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, pyro.optim.PyroOptim):
        return [inner(value.pt_optim_constructor), inner(value.pt_optim_args)]
    if inspect.ismethod(value):
        return [inner(value.__self__), inner(value.__func__)]
    if inspect.isfunction(value):
        cells = [c.cell_contents for c in value.__closure__ or () if not _is_empty(c)]
        return [
            _source(value),
            inner(value.__defaults__),
            inner(value.__kwdefaults__),
            inner(cells),
        ]
    if inspect.isclass(value):
        return [_name(value), _source(value)]
    attributes = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
    if isinstance(value, nn.Module):
        attributes.pop("training", None)
        attributes["modules"] = dict(value.named_children())
    return [_name(type(value)), _source(type(value)), inner(attributes)]


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _source(definition: Any) -> str:
    """The source of a function or of a class outside the installed packages."""
    module = getattr(definition, "__module__", None) or ""
    if module.partition(".")[0] in ("torch", "pyro", "builtins", "ppl_lvm"):
        return f"{module}.{definition.__qualname__}"
    try:
        return inspect.getsource(definition)
    except (OSError, TypeError):  # defined by exec
        code = getattr(definition, "__code__", None)
        return "" if code is None else code.co_code.hex() + repr(code.co_names)
