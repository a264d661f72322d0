"""A model, its guide and their objective, with parameters of their own.

Pyro keeps parameters in one store per process, under names that two fits may share. A
`ModelGuidePair`
works on copies of the programs and on a store of its own, so that no fit sees another's
parameters, and it knows every tensor that training changes: the leaves that the optimiser moves
and the buffers that programs keep (running means, baselines).
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

from ppl_lvm.core.rng import preserve_rng

Program = Callable[..., Any]
Batch = tuple[Any, ...]


def copy_programs(*programs: Any) -> tuple[Any, ...]:
    """Copies of programs, made together: what they share stays shared."""
    # Autoguides forget their model and their master when they are copied, in the original too.
    guides = [
        (i, name, part, part._model, part.master)
        for i, program in enumerate(programs)
        if isinstance(program, nn.Module)
        for name, part in program.named_modules()
        if isinstance(part, AutoGuide)
    ]
    memo: dict[int, Any] = {}
    copies = copy.deepcopy(programs, memo)
    for i, name, part, model, master in guides:
        part._model, part.master = model, master
        copies[i].get_submodule(name)._model = copy.deepcopy(model, memo)
    return copies


class _AsTheyAre(Messenger):
    """Keeps modules' parameters in Pyro's store as they are.

    The store makes what it is given contiguous. Of a parameter laid out otherwise (a transposed
    weight) it would keep a copy, which the program never reads and no gradient ever reaches.
    """

    def _pyro_post_param(self, msg: Any) -> None:
        name, store = msg["name"], pyro.get_param_store()
        given = msg["args"][1] if len(msg["args"]) > 1 else None
        kept = store._params.get(name)  # nothing, where parameters stay in their modules
        if (
            kept is not None
            and isinstance(given, nn.Parameter)
            and given is not kept
            and not given.is_contiguous()
            and store._constraints[name] is constraints.real
        ):
            del store._param_to_name[kept]
            store._params[name], store._param_to_name[given] = given, name
            msg["value"] = store[name]


class ModelGuidePair:
    """Copies of `model`, `guide` and `objective` (copied together: what they share stays shared).

    Attributes:
        model, guide, objective: the copies. Call the programs inside `scope()`.
        leaves: name -> unconstrained parameter, each distinct tensor once; set by
        `materialize_parameters`.
    """

    def __init__(self, model: Program, guide: Program, objective: ELBO) -> None:
        self.model, self.guide, self.objective = copy_programs(model, guide, objective)
        self.unconstrained_parameters: dict[str, Tensor] = {}
        # Parameters of modules that a function closes over (pyro.module) are the user's own
        # tensors: inside the scope they hold this pair's values, outside the user's.
        self._closure_parameters: list[tuple[nn.Parameter, Tensor]] = []
        self._inside = False
        self._store: dict[str, Any] = {"params": {}, "constraints": {}}

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Inside, `pyro.param` and modules' parameters mean this pair's."""
        if self._inside:
            yield
            return
        self._inside = True
        with pyro.get_param_store().scope(self._store):
            theirs = [leaf.detach().clone() for leaf, _ in self._closure_parameters]
            self._put([value for _, value in self._closure_parameters])
            try:
                yield
            finally:
                theirs += [
                    value for _, value in self._closure_parameters[len(theirs) :]
                ]  # by `materialize_parameters`
                self._closure_parameters = [
                    (leaf, leaf.detach().clone()) for leaf, _ in self._closure_parameters
                ]
                self._put(theirs)
                self._inside = False

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for (leaf, _), value in zip(self._closure_parameters, values, strict=True):
                leaf.copy_(value)

    def materialize_parameters(self, *batch: Any) -> poutine.Trace:
        """Run both programs once, so that lazily made parameters exist; collect the leaves.

        Returns the model's trace on `batch`, its latents drawn by the guide.
        """
        self._refuse_tied_names()
        with self.scope(), torch.no_grad():
            store = pyro.get_param_store()
            with poutine.block(), _AsTheyAre():
                drawn = poutine.trace(self.guide).get_trace(*batch)
                traced = poutine.trace(poutine.replay(self.model, drawn)).get_trace(*batch)
            own = {id(p) for _, module in self.modules() for p in module.parameters()}
            for name, value in list(store._params.items()):
                if isinstance(value, nn.Parameter):
                    if id(value) not in own:
                        self._closure_parameters.append((value, value.detach().clone()))
                else:
                    # Its first value may be a tensor of the user's, which training must not move.
                    leaf = value.detach().clone().requires_grad_(value.requires_grad)
                    store._params[name], store._param_to_name[leaf] = leaf, name
        self.unconstrained_parameters = self._collect()
        return traced

    def initialize_objective(self, model: Program, guide: Program, *batch: Any) -> None:
        """Let the objective see the pair once, as it will be called: it refuses what it cannot
        treat, finds out what it wants to know (running the programs, which may move buffers),
        and learned parts of it (a baseline's network) take their sizes from the data.
        """
        objective: Any = self.objective
        if isinstance(objective, nn.Module):
            with self.scope(), preserve_rng():
                objective.eval()  # its averages learn nothing from this
                self.objective.loss_and_grads(model, guide, *batch)
                objective.train()
                self.unconstrained_parameters = self._collect()
                for leaf in self.unconstrained_parameters.values():
                    leaf.grad = None

    def _refuse_tied_names(self) -> None:
        """Constrained parameters live in Pyro's store by name: two of one name would be one."""
        names = [
            {name for name, leaf, value in _constrained(module) if leaf is not value}
            for owner, module in self.modules()
            if owner != "objective"
        ]
        if len(names) == 2 and (both := names[0] & names[1]):
            raise ValueError(
                f"Model and guide both have a parameter called {sorted(both)[0]!r}; Pyro would "
                "make them one. Rename one of the attributes."
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
        """Those of model, guide and objective that are modules, with their role."""
        for owner in ("model", "guide", "objective"):
            program = getattr(self, owner)
            if isinstance(program, nn.Module):
                yield owner, program

    def parameters(self) -> dict[str, Tensor]:
        """Name -> constrained value, detached, as a person knows it: "weights", "encoder.0.bias".

        A name that model and guide both use is prefixed by its owner: "guide.scale".
        """
        found: list[tuple[str, str, Tensor]] = []
        seen: set[int] = set()
        with self.scope():
            for owner, module in self.modules():
                for name, leaf, value in _constrained(module):
                    if id(leaf) not in seen:
                        seen.add(id(leaf))
                        found.append((owner, name, value.detach().clone()))
            store = pyro.get_param_store()
            found += [
                ("store", name, store[name].detach().clone())
                for name, leaf in store._params.items()
                if id(leaf) not in seen
            ]
        names = [name for _, name, _ in found]
        return {
            name if names.count(name) == 1 else f"{owner}.{name}": value
            for owner, name, value in found
        }

    def eval_mode(self) -> None:
        """Put every module in evaluation mode: dropout off, batch normalisation fixed."""
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
        """Copy `tensors`, as `state` named them, into the pair.

        Raises:
            ValueError: a tensor is missing, is too many, or has another shape.
        """
        own = self._tensors()
        stored = {name: t for name, t in tensors.items() if name.startswith("state/")}
        wrong = sorted(
            name.removeprefix("state/")
            for name in own.keys() | stored.keys()
            if name not in own or name not in stored or own[name].shape != stored[name].shape
        )
        if wrong:
            raise ValueError(
                f"The stored parameters do not fit this model and guide: {', '.join(wrong)} "
                "missing, unknown or of another shape. Load them into the programs and settings "
                "that the run was made with."
            )
        with self.scope(), torch.no_grad():
            for name, tensor in own.items():
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
