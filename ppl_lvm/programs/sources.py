"""Factories of models and guides.

A model is a callable of the batch, or a class of such callables. A guide has the arguments of the
model, or is a class or a function that builds one. A builder whose first parameter is called
`model` is called with the model, and with the batch too if it takes *batch.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from ppl_lvm.core.call_syntax import build, settings_of, unknown_settings
from ppl_lvm.core.messages import reason_of
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.programs.loading import address_of, address_problem, load_program, source_digest
from ppl_lvm.programs.messenger_guide import as_written
from ppl_lvm.programs.trust import Trust, remember_fitted

DEFAULT_GUIDE = "ppl_lvm.guides:auto_guide"

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class ProgramSpec:
    """Description of a program that can build it again, for run.json.

    Attributes:
        name: its name in output.
        address: its address; None if it has none.
        settings: its arguments; None if unknown.
        builder: whether the address is called to build the program.
        digest: SHA-256 of the source file at the time of the run.
    """

    name: str
    address: str | None
    settings: dict[str, Any] | None = field(default_factory=dict)
    builder: bool = False
    digest: str | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self)


class ModelFactory:
    """Builds the model for every restart, and records how."""

    def __init__(self, program: Any, settings: Mapping[str, Any] | None = None) -> None:
        self._settings = dict(settings or {})
        self._program = load_program(program) if isinstance(program, str) else program
        if not callable(self._program):
            raise ValueError(f"Model {program!r}: it is no program. Pass a function of the batch.")
        self.is_class = inspect.isclass(self._program)
        if self._settings and not self.is_class:
            raise ValueError(
                "Model: settings need a class. Pass the model as a class or as the address of one."
            )
        if isinstance(program, str):
            address: str | None = program
        else:
            address = address_of(self._program)
        known: dict[str, Any] | None = self._settings
        if not self.is_class and isinstance(self._program, nn.Module):
            known = settings_of(self._program)
        self.recipe = ProgramSpec(
            name=getattr(self._program, "__name__", type(self._program).__name__),
            address=address,
            settings=known,
            builder=self.is_class or isinstance(self._program, nn.Module),
            digest=source_digest(address),
        )
        _remember(program, self._program, self.recipe)

    @property
    def kind(self) -> Any:
        """The model's class; of a function the function."""
        program = self._program
        return type(program) if isinstance(program, nn.Module) else program

    @property
    def program(self) -> Any:
        """The model, or its class."""
        return self._program

    def reload_problem(self) -> str | None:
        """Reason why a stored run could not build the model again, with the remedy, or None."""
        program, name = self._program, self.recipe.name
        problem = address_problem(program, self.recipe.address)
        if problem is None and not self.is_class and not inspect.isfunction(program):
            problem = _instance_problem(program, self.recipe.settings)
        return problem and _reload_message("model", name, problem)

    def make(
        self, batch: Batch, *, restart: int = 0, mix_starts: bool = False
    ) -> Callable[..., Any]:
        """A model, initialized from the data if it has `initialize`.

        Args:
            batch: the rows to initialize from.
            restart: number of the restart.
            mix_starts: let `initialize_restart`, if the model has it, initialize restarts above 0.
        """
        if self.is_class:
            model = build(self._program, settings=self._settings, what=self.recipe.name)
        elif restart and not hasattr(self._program, "initialize"):
            if self.recipe.settings is None or not isinstance(self._program, nn.Module):
                raise ValueError(
                    f"{self.recipe.name}: restarts need a new model each. Pass the class as model "
                    "(with settings={...}), or give it an initialize(x) method."
                )
            model = type(self._program)(**self.recipe.settings)
        else:
            # The first restart uses the caller's object; later ones use a copy.
            model = self._program if restart == 0 else copy.deepcopy(self._program)
        built = model is not self._program  # the caller's object stays on its device
        if built:
            move_to_batch_device(model, batch)
        if mix_starts and restart and hasattr(model, "initialize_restart"):
            model.initialize_restart(restart, *batch)
        elif hasattr(model, "initialize"):
            require_arguments(model.initialize, batch, f"{self.recipe.name}.initialize")
            model.initialize(*batch)
        return move_to_batch_device(model, batch) if built else model  # new parameters too


class GuideFactory:
    """Builds the guide for a model, and records how."""

    def __init__(self, program: Any, settings: Mapping[str, Any] | None = None) -> None:
        self._settings = dict(settings or {})
        address = (
            DEFAULT_GUIDE if program is None else program if isinstance(program, str) else None
        )
        self._program = load_program(address) if address is not None else program
        described = as_written(self._program)
        if not callable(self._program):
            raise ValueError(f"Guide {program!r}: it is no program. Pass a function of the batch.")
        self.is_builder = is_builder(self._program)
        if self._settings and not self.is_builder:
            raise ValueError(
                "Guide: settings need a builder. Pass the guide as a class or address."
            )
        if address is None:
            address = address_of(described)
        known: dict[str, Any] | None = self._settings
        if isinstance(self._program, nn.Module):
            known = settings_of(described)
        # Another instance must be passed again when the run is loaded.
        rebuildable = self.is_builder or inspect.isfunction(self._program)
        rebuildable = rebuildable or (isinstance(self._program, nn.Module) and known is not None)
        self.recipe = ProgramSpec(
            name=getattr(described, "__name__", type(described).__name__),
            address=address if rebuildable else None,
            settings=known,
            builder=self.is_builder,
            digest=source_digest(address) if rebuildable else None,
        )
        _remember(program, self._program, self.recipe)

    @property
    def program(self) -> Any:
        """The guide, or its builder."""
        return self._program

    def reload_problem(self) -> str | None:
        """Reason why a stored run could not build the guide again, with the remedy, or None."""
        program, name = as_written(self._program), self.recipe.name
        address = self.recipe.address or address_of(program)
        problem = address_problem(program, address)
        if problem is None and not self.is_builder and not inspect.isfunction(program):
            problem = _instance_problem(program, self.recipe.settings)
        return problem and _reload_message("guide", name, problem)

    def make(self, model: Any, batch: Batch, *, restart: int = 0) -> Callable[..., Any]:
        if self.is_builder:
            return _build_guide(self._program, model, batch, self._settings, self.recipe.name)
        if restart and isinstance(self._program, nn.Module):
            raise ValueError(
                f"{self.recipe.name}: restarts need a new guide each. Pass the guide as a class or "
                "a builder."
            )
        return self._program


def require_arguments(function: Callable[..., Any], batch: Batch, subject: str) -> None:
    """Raise unless a function can be called with the tensors of the data."""
    try:
        inspect.signature(function).bind(*batch)
    except TypeError as error:
        raise ValueError(
            f"{subject}({', '.join(inspect.signature(function).parameters)}) cannot be called "
            f"with the tensors of the data ({len(batch)}): {error}. "
            "Pass data with one array for each argument of the model."
        ) from None


def _remember(request: Any, program: Any, recipe: ProgramSpec) -> None:
    """Let runs of a program load in this process; of an instance its class is built again."""
    definition = inspect.isclass(program) or inspect.isfunction(program)
    if not definition and not isinstance(request, str) and recipe.settings is not None:
        program = type(program)
    remember_fitted(program, recipe.address, recipe.digest)


def _reload_message(what: str, name: str, problem: str) -> str:
    return (
        f"{name}: load_run(directory) and the report will not find this {what}: {problem}; or pass "
        f"it, load_run(directory, {what}=...)."
    )


def _instance_problem(program: Any, settings: Mapping[str, Any] | None) -> str | None:
    """Reason why an instance cannot be built again from its class and its attributes."""
    kind = type(program)
    if not isinstance(program, nn.Module):
        return f"it is an object of {kind.__name__}, no module. Write a function or a PyroModule"
    if settings is None:
        names = ", ".join(repr(name) for name in unknown_settings(program))
        return (
            f"its constructor arguments ({names}) are not kept. Keep each as an attribute of the "
            "same name that is a number, a text or a tuple of such, self.x = x"
        )
    try:
        with preserve_rng():
            again = kind(**settings)
    except Exception as error:
        return f"built again from its attributes it fails, {reason_of(error)}. Keep the arguments"
    shapes, others = ({n: p.shape for n, p in m.named_parameters()} for m in (program, again))
    changed = [n for n in others if n not in shapes or shapes[n] != others[n]]
    if not hasattr(program, "initialize"):
        changed += [n for n in shapes if n not in others]
    if changed:
        return (
            f"built again from its attributes it has another {changed[0]!r}. Keep each constructor "
            "argument unchanged as an attribute of the same name"
        )
    return None


def is_builder(guide: Any) -> bool:
    """True for a class of guides or a function of `model`, which build guides."""
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
    """Move a program that we built to the device of its data."""
    if isinstance(program, nn.Module) and batch and batch[0].device.type != "cpu":
        program.to(batch[0].device)
    return program


def instantiate_from_record(
    recipe: ProgramSpec,
    program: Any,
    template: Batch,
    *,
    what: str,
    trust: Trust,
    model: Any = None,
) -> Callable[..., Any]:
    """The program of a stored run: `program`, or the one that its recipe names.

    Raises:
        UntrustedError: the recipe names a program that may not be imported.
        ValueError: the program cannot be built, or does not take the tensors of the data.
    """
    if program is None:
        if recipe.address is None or recipe.settings is None:
            reason = (
                "its constructor arguments were not kept as attributes"
                if recipe.address is not None
                else "no address led to it, or its constructor arguments were not kept"
            )
            raise ValueError(
                f"{recipe.name}: the run has no record to build this {what} from: {reason}. "
                f"Pass it: load_run(directory, {what}=...)."
            )
        program = trust.load(recipe.address, recipe.digest, what)
    if not callable(program):
        raise ValueError(f"{what}={program!r} is no program. Pass the {what} that was fitted.")
    settings = recipe.settings or {}
    if inspect.isfunction(program) and not (what == "guide" and is_builder(program)):
        require_arguments(program, template, f"{what} {recipe.name}:")
    if what == "guide":
        if is_builder(program):
            return _build_guide(program, model, template, settings, recipe.name)
        return program
    if inspect.isclass(program):
        if not issubclass(program, nn.Module):
            raise ValueError(
                f"{recipe.address}: it is no torch or Pyro module. Pass the model: "
                "load_run(directory, model=...)."
            )
        program = build(program, settings=settings, what=recipe.name)
        if hasattr(program, "initialize"):
            # For the sizes only: the values are replaced, so that too few rows do not matter.
            with contextlib.suppress(ValueError):
                program.initialize(*template)
    return program
