"""Programs as people hand them over (address, class, instance, function) -> programs that run.

A model is a callable of the batch, or a class of such. A guide has the model's signature, or is
a class or a function that builds one. A builder whose first parameter is called `model` is called
with the model, and with the batch too where it takes *batch.
"""

import contextlib
import copy
import hashlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ppl_lvm.core.call_syntax import build, settings_of
from ppl_lvm.programs.loading import address_of, load_program

DEFAULT_GUIDE = "ppl_lvm.guides:auto_guide"

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class ProgramSpec:
    """How to make a program again: plain data for run.json.

    Attributes:
        name: what people call it.
        address: where it stands; None where no address reaches it.
        settings: its arguments; None where they could not be read back.
        builder: whether the address is called to make the program.
        digest: SHA-256 of the source file when the run was made.
    """

    name: str
    address: str | None
    settings: dict[str, Any] | None = field(default_factory=dict)
    builder: bool = False
    digest: str | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def source_digest(address: str | None) -> str | None:
    """SHA-256 of the file that an address points into; None where there is none to read."""
    if address is None:
        return None
    place = address.rpartition(":")[0]
    try:
        if not place.endswith(".py"):
            spec = importlib.util.find_spec(place)
            place = "" if spec is None or spec.origin is None else spec.origin
        return hashlib.sha256(Path(place).expanduser().read_bytes()).hexdigest()
    except (OSError, ValueError, ImportError):
        return None


class ModelFactory:
    """Makes the model anew for every restart, and remembers how."""

    def __init__(self, given: Any, settings: Mapping[str, Any] | None = None) -> None:
        self._settings = dict(settings or {})
        self._given = load_program(given) if isinstance(given, str) else given
        if not callable(self._given):
            raise ValueError(f"A model is a callable of the batch; got {given!r}.")
        self.is_class = inspect.isclass(self._given)
        if self._settings and not self.is_class:
            raise ValueError("Settings are for a model given as a class or an address of one.")
        if isinstance(given, str):
            address: str | None = given
        else:
            address = address_of(self._given)
        known: dict[str, Any] | None = self._settings
        if not self.is_class and isinstance(self._given, nn.Module):
            known = settings_of(self._given)
        self.recipe = ProgramSpec(
            name=getattr(self._given, "__name__", type(self._given).__name__),
            address=address,
            settings=known,
            builder=self.is_class or isinstance(self._given, nn.Module),
            digest=source_digest(address),
        )

    def make(self, batch: Batch, *, restart: int = 0) -> Callable[..., Any]:
        """A model, started from the data where it knows how (`initialize`)."""
        if self.is_class:
            model = build(self._given, settings=self._settings, what=self.recipe.name)
        elif restart and not hasattr(self._given, "initialize"):
            if self.recipe.settings is None or not isinstance(self._given, nn.Module):
                raise ValueError(
                    f"restarts need a fresh start each, and {self.recipe.name} offers none. Give "
                    "the model as a class (with settings={...}), or give it an initialize(x) "
                    "method."
                )
            model = type(self._given)(**self.recipe.settings)
        else:
            # The caller hands over an object of its own; later restarts start from a copy.
            model = self._given if restart == 0 else copy.deepcopy(self._given)
        own = model is not self._given  # an object that is handed over stays where it was put
        if own:
            move_to_batch_device(model, batch)
        if hasattr(model, "initialize"):
            model.initialize(*batch)
        return move_to_batch_device(model, batch) if own else model  # what the start has made, too


class GuideFactory:
    """Makes the guide for a model, and remembers how."""

    def __init__(self, given: Any, settings: Mapping[str, Any] | None = None) -> None:
        self._settings = dict(settings or {})
        address = DEFAULT_GUIDE if given is None else given if isinstance(given, str) else None
        self._given = load_program(address) if address is not None else given
        if not callable(self._given):
            raise ValueError(f"A guide is a callable with the model's signature; got {given!r}.")
        self.is_builder = is_builder(self._given)
        if self._settings and not self.is_builder:
            raise ValueError("Settings are for a guide given as a class, a builder, or an address.")
        if address is None:
            address = address_of(self._given)
        # A guide handed over as an instance is loaded by handing it over again.
        rebuildable = self.is_builder or inspect.isfunction(self._given)
        self.recipe = ProgramSpec(
            name=getattr(self._given, "__name__", type(self._given).__name__),
            address=address if rebuildable else None,
            settings=self._settings,
            builder=self.is_builder,
            digest=source_digest(address) if rebuildable else None,
        )

    def make(self, model: Any, batch: Batch, *, restart: int = 0) -> Callable[..., Any]:
        if self.is_builder:
            return _build_guide(self._given, model, batch, self._settings, self.recipe.name)
        if restart and isinstance(self._given, nn.Module):
            raise ValueError(
                "restarts need a fresh guide each: give the guide as a class or a builder."
            )
        return self._given


def is_builder(guide: Any) -> bool:
    """Whether `guide` makes guides (a class, or a function of `model`) rather than being one."""
    if inspect.isclass(guide):
        return True
    if isinstance(guide, nn.Module):
        return False
    try:
        parameters = list(inspect.signature(guide).parameters)
    except (TypeError, ValueError):
        return False
    return bool(parameters) and parameters[0] == "model"


def _build_guide(
    builder: Any, model: Any, batch: Batch, settings: Mapping[str, Any], name: str
) -> Callable[..., Any]:
    parameters = list(inspect.signature(builder).parameters.values())
    arguments: tuple[Any, ...] = ()
    if parameters and parameters[0].name == "model":
        takes_batch = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        arguments = (model, *batch) if takes_batch else (model,)
    return move_to_batch_device(build(builder, *arguments, settings=settings, what=name), batch)


def move_to_batch_device(program: Any, batch: Batch) -> Any:
    """A program or objective that was made here, on the device that its data have been put on."""
    if isinstance(program, nn.Module) and batch and batch[0].device.type != "cpu":
        program.to(batch[0].device)
    return program


def instantiate_from_record(
    recipe: ProgramSpec, given: Any, template: Batch, *, what: str, model: Any = None
) -> Callable[..., Any]:
    """The program of a stored run: the one given, or the one that its recipe names."""
    if given is None:
        if recipe.address is None or recipe.settings is None:
            raise ValueError(
                f"The run does not know how to build its {what} {recipe.name} again. Pass it: "
                f"load_run(directory, {what}=...)."
            )
        given = load_program(recipe.address)
    settings = recipe.settings or {}
    if what == "guide":
        if is_builder(given):
            return _build_guide(given, model, template, settings, recipe.name)
        return given
    if inspect.isclass(given):
        if not issubclass(given, nn.Module):
            raise ValueError(f"{recipe.address} is not a model: it is no torch or Pyro module.")
        given = build(given, settings=settings, what=recipe.name)
        if hasattr(given, "initialize"):
            # For the sizes only; too few rows for a start are no matter, its values are replaced.
            with contextlib.suppress(ValueError):
                given.initialize(*template)
    return given
