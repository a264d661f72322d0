"""Call syntax: names with literal keyword arguments, "Adam(lr=0.01)"."""

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pyro.nn import PyroModule
from torch import nn

from ppl_lvm.core.arguments import checked, hints_of
from ppl_lvm.core.messages import did_you_mean, reason_of
from ppl_lvm.core.validate import check_arguments


@checked
def parse_call(text: str, what: str = "") -> tuple[str, dict[str, Any]]:
    """Split "Name(key=literal, …)" into the name and its arguments; "Name" alone has none.

    Errors begin with `what`, the name of the option.

    >>> parse_call("IWAE(num_particles=5)")
    ('IWAE', {'num_particles': 5})
    """
    usage = f"{text[:200]!r} is not a name with literal keyword arguments. "
    usage += "Write one as in 'Adam(lr=0.01)'."
    usage = f"{what}: {usage}" if what else usage
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (
        SyntaxError,
        ValueError,
        MemoryError,
        RecursionError,
    ):  # nested deeply, a null character
        raise ValueError(usage) from None
    if isinstance(node, ast.Call) and not node.args and all(k.arg for k in node.keywords):
        name, keywords = node.func, node.keywords
    else:
        name, keywords = node, []
    if not isinstance(name, ast.Name):
        plain = (
            f" Write {name.attr}, without its module." if isinstance(name, ast.Attribute) else ""
        )
        raise ValueError(usage + plain)
    try:
        return name.id, {str(k.arg): ast.literal_eval(k.value) for k in keywords}
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError(usage) from None


def parse_settings(items: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """Settings from the command line: "components=3" -> {"components": 3}.

    A value that is not a Python literal is text: likelihood=bernoulli.
    """
    settings: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(
                f"{option}: {item!r} is not a setting. Write name=value: components=3."
            )
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            settings[name] = value
    return settings


@checked
def build(
    factory: Callable[..., Any], *arguments: Any, settings: Mapping[str, Any], what: str
) -> Any:
    """Call `factory(*arguments, **settings)` after checking the settings.

    Raises:
        ValueError: a setting that the factory does not take, or a value other than annotated.
    """
    parameters = inspect.signature(factory).parameters
    accepted = [
        p.name
        for i, p in enumerate(parameters.values())
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and i >= len(arguments)
    ]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in settings:
        if name not in accepted and not open_ended:
            hint = did_you_mean(name, accepted)
            raise ValueError(f"{what} takes no {name!r}; it takes {', '.join(accepted)}.{hint}")
    missing = [name for name in accepted if parameters[name].default is inspect.Parameter.empty]
    if missing := [name for name in missing if name not in settings]:
        raise ValueError(
            f"{what} needs a value of {', '.join(missing)}. Pass it in the settings, or pass an "
            "object in place of the class."
        )
    settings = check_arguments(settings, hints_of(factory), what)
    try:
        return factory(*arguments, **settings)
    except (TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        if not settings:
            raise
        listed = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise ValueError(
            f"{what} cannot be built with {listed}: {reason_of(error)}. Correct these arguments."
        ) from error


def settings_of(program: Any) -> dict[str, Any] | None:
    """Constructor arguments, read back from the attributes of the same names.

    None if an argument has no such attribute or is not plain data: a run can then only be loaded
    with the program passed again.
    """
    settings: dict[str, Any] = {}
    for p in _arguments(type(program)):
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            return None
        value = getattr(program, p.name, inspect.Parameter.empty)
        if not _is_plain(value):
            return None
        settings[p.name] = value
    return settings


def unknown_settings(program: Any) -> list[str]:
    """Constructor arguments that `settings_of` cannot read back."""
    return [
        p.name
        for p in _arguments(type(program))
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        or not _is_plain(getattr(program, p.name, inspect.Parameter.empty))
    ]


def _arguments(program: type) -> list[inspect.Parameter]:
    """Constructor arguments; none of a module without a constructor."""
    if program.__init__ in (nn.Module.__init__, PyroModule.__init__):  # type: ignore[misc]
        return []
    return list(inspect.signature(program).parameters.values())


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)


def is_literal(value: Any) -> bool:
    """True if the value's text is a literal that reads back as an equal value."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False
