"""A model, its guide and their objective, with separate parameters.

Pyro keeps parameters in one store per process, under names that two fits may share. A
`ModelGuidePair` has copies of the programs and a separate store, so that fits share no parameters.
It lists every tensor that training changes: the leaves that the optimizer changes and the buffers
of programs (running means, baselines).
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.parameter import UninitializedParameter

from ppl_lvm.core.public_calls import exclusive
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.programs.improper import improper_draws
from ppl_lvm.programs.messenger_guide import plain_guide
from ppl_lvm.programs.precision import default_dtype
from ppl_lvm.programs.row_plates import RowPlates, joint_sites, known_row_plates, row_plates

Program = Callable[..., Any]
Batch = tuple[Any, ...]


def copy_programs(*programs: Any) -> tuple[Any, ...]:
    """Copy programs together, so that shared parts stay shared; guides as `plain_guide`."""
    programs = tuple(map(plain_guide, programs))
    # A copy of an autoguide drops its model and its master, in the original too.
    guides = [
        (i, name, part, part._model, part.master)
        for i, program in enumerate(programs)
        if isinstance(program, nn.Module)
        for name, part in program.named_modules()
        if isinstance(part, AutoGuide)
    ]
    memo: dict[int, Any] = {}
    try:
        copies = copy.deepcopy(programs, memo)
    except RuntimeError as error:
        raise _computed_attribute(programs) or error from None
    for i, name, part, model, master in guides:
        part._model, part.master = model, master
        copies[i].get_submodule(name)._model = copy.deepcopy(model, memo)
    return copies


def _computed_attribute(programs: tuple[Any, ...]) -> ValueError | None:
    """The fault of a module that keeps a tensor with a graph, which cannot be copied."""
    for program in programs:
        for path, part in program.named_modules() if isinstance(program, nn.Module) else ():
            for name, value in vars(part).items():
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    full = f"{path}.{name}".lstrip(".")
                    return ValueError(
                        f"{type(program).__name__}: its attribute {full!r} was computed from a "
                        "parameter, so that no step would change it. Keep the parameter, "
                        f"self.{name} = nn.Parameter(...), and compute from it in forward."
                    )
    return None


class KeepLayout(Messenger):
    """Stores modules' parameters in Pyro's store with their memory layout.

    The store makes its tensors contiguous. Of a parameter with another layout (a transposed weight)
    it would store a copy, which the program never reads and no gradient reaches.
    """

    def _pyro_post_param(self, msg: Any) -> None:
        name, store = msg["name"], pyro.get_param_store()
        parameter = msg["args"][1] if len(msg["args"]) > 1 else None
        stored = store._params.get(name)  # None if parameters stay in their modules
        if (
            stored is not None
            and isinstance(parameter, nn.Parameter)
            and parameter is not stored
            and not parameter.is_contiguous()
            and store._constraints[name] is constraints.real
        ):
            del store._param_to_name[stored]
            store._params[name], store._param_to_name[parameter] = parameter, name
            msg["value"] = store[name]


class ModelGuidePair:
    """Copies of `model`, `guide` and `objective`, made together.

    Attributes:
        model, guide, objective: the copies. Call the programs inside `scope()`.
        unconstrained_parameters: name -> leaf, each distinct tensor once; set by
            `materialize_parameters`.
        dtype: precision in which the programs run; None is the default.
        joint_sites: the model's sites that hold values of all rows together, set likewise.
    """

    def __init__(self, model: Program, guide: Program, objective: ELBO) -> None:
        self.model, self.guide, self.objective = copy_programs(model, guide, objective)
        self.unconstrained_parameters: dict[str, Tensor] = {}
        double = torch.get_default_dtype() is torch.float64
        self.dtype: torch.dtype | None = torch.float64 if double else None
        self._row_plates: RowPlates | None = None
        self.joint_sites: frozenset[str] = frozenset()
        # Parameters of modules that a function closes over (pyro.module) are tensors of the user:
        # they have this pair's memory inside the scope, and the user's outside. Copies in place
        # would change what a caller still holds, such as a point, which is the parameter itself.
        self._closure_parameters: list[nn.Parameter] = []
        self._other_memory: list[Tensor] = []  # of the user inside the scope, of the pair outside
        self._inside = False
        self._store: dict[str, Any] = {"params": {}, "constraints": {}}

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Scope in which parameters and row plates are those of this pair."""
        with exclusive("scope"):
            if self._inside:
                yield
            else:
                yield from self._enter()

    def _enter(self) -> Iterator[None]:
        self._inside = True
        with (
            default_dtype(self.dtype),
            improper_draws(),
            pyro.get_param_store().scope(self._store),
            known_row_plates(self._row_plates),
        ):
            self._swap()
            try:
                yield
            finally:
                self._swap()
                self._inside = False

    def _swap(self) -> None:
        """Exchange the memory of closure parameters for the other."""
        for i, leaf in enumerate(self._closure_parameters):
            leaf.data, self._other_memory[i] = self._other_memory[i], leaf.data

    def materialize_parameters(self, *batch: Any) -> poutine.Trace:
        """Run both programs once to create lazy parameters, and collect the leaves.

        Returns the model's trace on `batch`, with latents drawn by the guide.
        """
        self._refuse_tied_names()
        with self.scope(), torch.no_grad():
            store = pyro.get_param_store()
            with poutine.block(), KeepLayout():
                guide_trace = poutine.trace(self.guide).get_trace(*batch)
                replayed = poutine.replay(self.model, guide_trace)
                model_trace = poutine.trace(replayed).get_trace(*batch)
            owned = {id(p) for _, module in self.modules() for p in module.parameters()}
            for name, value in list(store._params.items()):
                if isinstance(value, nn.Parameter):
                    if id(value) not in owned:
                        self._closure_parameters.append(value)
                        self._other_memory.append(value.data)
                        value.data = value.data.clone()
                else:
                    # Its first value may be a tensor of the user, which training must not change.
                    leaf = value.detach().clone().requires_grad_(value.requires_grad)
                    store._params[name], store._param_to_name[leaf] = leaf, name
        self.unconstrained_parameters = self._collect()
        with self.scope():
            self._row_plates = row_plates(self.model, self.guide, batch=batch)
            self.joint_sites = joint_sites(self.model, self.row_plates, batch)
        return model_trace

    @property
    def row_plates(self) -> frozenset[str]:
        """Names of the plates over rows, known after `materialize_parameters`."""
        assert self._row_plates is not None, "materialize_parameters has not been called"
        return self._row_plates.names

    @property
    def stated_rows(self) -> int | None:
        """N where a plate of the programs says what a batch stands for, else None."""
        return None if self._row_plates is None else self._row_plates.stated_rows

    def initialize_objective(self, model: Program, guide: Program, *batch: Any) -> None:
        """Run the objective once, so that it validates the pair and initializes lazy parameters.

        This runs the programs, which may change buffers.
        """
        objective: Any = self.objective
        if isinstance(objective, nn.Module):
            with self.scope(), preserve_rng():
                objective.eval()  # its running averages stay
                self.objective.loss_and_grads(model, guide, *batch)
                objective.train()
                self.unconstrained_parameters = self._collect()
                for leaf in self.unconstrained_parameters.values():
                    leaf.grad = None

    def _refuse_tied_names(self) -> None:
        """Refuse two constrained parameters of one name, which share one entry of Pyro's store."""
        names = [
            {
                # Autoguides have the name of their class before it.
                f"{getattr(module, '_pyro_name', '')}.{name}"
                for name, leaf, value in _constrained(module)
                if leaf is not value
            }
            for owner, module in self.modules()
            if owner != "objective"
        ]
        if len(names) == 2 and (common := names[0] & names[1]):
            name = min(common).lstrip(".")
            raise ValueError(
                f"Parameter {name!r}: model and guide both have one of this name, and "
                "Pyro would share them. Rename one of the attributes."
            )

    def _collect(self) -> dict[str, Tensor]:
        leaves: dict[str, Tensor] = {}
        seen: set[int] = set()
        for owner, module in self.modules():
            for name, parameter in module.named_parameters():
                if (
                    id(parameter) not in seen
                    and parameter.requires_grad
                    and not isinstance(parameter, UninitializedParameter)
                ):
                    seen.add(id(parameter))
                    leaves[f"{owner}/{name}"] = parameter
        for name, parameter in self._store["params"].items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                leaves[f"store/{name}"] = parameter
        return leaves

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Role and module, for model, guide and objective if they are modules."""
        for owner in ("model", "guide", "objective"):
            program = getattr(self, owner)
            if isinstance(program, nn.Module):
                yield owner, program

    def parameters(self) -> dict[str, Tensor]:
        """Name -> constrained value, detached: "weights", "encoder.0.bias".

        A name that model and guide share is prefixed by its owner: "guide.scale".
        """
        listed: list[tuple[str, str, Tensor]] = []
        seen: set[int] = set()
        with self.scope():
            for owner, module in self.modules():
                for name, leaf, value in _constrained(module):
                    if id(leaf) not in seen:
                        seen.add(id(leaf))
                        listed.append((owner, name, value.detach().clone()))
            store = pyro.get_param_store()
            listed += [
                ("store", name, store[name].detach().clone())
                for name, leaf in store._params.items()
                if id(leaf) not in seen
            ]
        names = [name for _, name, _ in listed]
        return {
            name if names.count(name) == 1 else f"{owner}.{name}": value
            for owner, name, value in listed
        }

    def eval_mode(self) -> None:
        """Put every module in evaluation mode: dropout off, batch normalization fixed."""
        for _, module in self.modules():
            module.eval()

    def state(self) -> dict[str, Tensor]:
        """Copies of every tensor that training changes, by name: leaves and modules' buffers."""
        with self.scope():
            return {name: t.detach().clone() for name, t in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        tensors = dict(self.unconstrained_parameters)
        for owner, module in self.modules():
            tensors |= {f"{owner}/{name}": b for name, b in module.named_buffers()}
        return {f"state/{name}": tensor for name, tensor in tensors.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors`, with the names of `state`, into the pair.

        Raises:
            ValueError: for a missing or unknown tensor, or another shape.
        """
        current = self._tensors()
        stored = {name: t for name, t in tensors.items() if name.startswith("state/")}
        wrong = sorted(
            name.removeprefix("state/")
            for name in current.keys() | stored.keys()
            if name not in current
            or name not in stored
            or current[name].shape != stored[name].shape
        )
        if wrong:
            raise ValueError(
                f"The stored parameters do not fit this model and guide: {', '.join(wrong)} "
                "missing, unknown or of another shape. Load them into the programs and settings "
                "that the run was made with."
            )
        with self.scope(), torch.no_grad():
            for name, tensor in current.items():
                tensor.copy_(stored[name])


def _constrained(module: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, unconstrained leaf, constrained value) of every parameter of `module`."""
    for prefix, part in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        constrained = part._pyro_params if isinstance(part, PyroModule) else {}
        for name, leaf in part.named_parameters(recurse=False):
            plain = name.removesuffix("_unconstrained")
            if plain != name and plain in constrained:
                yield dot + plain, leaf, getattr(part, plain)
            else:
                yield dot + name, leaf, leaf
