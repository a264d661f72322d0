"""Rows, record and run directory of a fit."""

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ppl_lvm.core import distributed, interrupts
from ppl_lvm.core.errors import NonFiniteError, is_numerical
from ppl_lvm.core.lock import directory_lock
from ppl_lvm.core.messages import reason_of
from ppl_lvm.core.torch_specs import describe
from ppl_lvm.data import Data, load_data
from ppl_lvm.data.selection import first_rows, initialization_rows, sample_rows, split_validation
from ppl_lvm.data.weights import repeat_rows
from ppl_lvm.posterior.evidence import log_evidence, shares_latents
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.precision import default_dtype, precision_of
from ppl_lvm.programs.sources import GuideFactory, ModelFactory
from ppl_lvm.runs.directory import load_run, open_run_directory, write_record
from ppl_lvm.runs.record import environment_record, evidence_record, identity
from ppl_lvm.runs.run import Run
from ppl_lvm.training.attempts import Attempts
from ppl_lvm.training.identity import Identity, definition_digest
from ppl_lvm.training.iterate import Checkpointable, iterate_with_checkpoints
from ppl_lvm.training.options import SessionOptions, declared

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

_resources: ContextVar[ExitStack] = ContextVar("resources")  # of the fit

EVIDENCE = "log evidence"  # name of this result where it is not computed
SAVED = "saved run"  # the same, of the run directory
ENDED = "the process ended before"


def releases_directory(function: F) -> F:
    """Decorator of a fit: the lock of its run directory ends with it, however it ends."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as resources:
            token = _resources.set(resources)
            try:
                return function(*args, **kwargs)
            finally:
                _resources.reset(token)

    wrapped: Any = call
    return wrapped


def in_precision_of_data(function: F) -> F:
    """Decorator of a fit of (programs, data, options), which runs in the precision of the data."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        dtype = precision_of(arguments[-2])
        with default_dtype(dtype):
            try:
                return function(*arguments)
            except RuntimeError as error:
                if dtype is None or "dtype" not in str(error):
                    raise
                raise ValueError(
                    "The data are in double precision, and the programs do not run in it: "
                    f"{reason_of(error)} Give their tensors the dtype of the arguments, as in "
                    "torch.eye(3).to(x), or pass x.float()."
                ) from error

    wrapped: Any = call
    return wrapped


def draw_run(run: Any, rows: Data, folder: Path) -> None:
    """Draw the figures of a run into a folder."""
    from ppl_lvm.report.run_figures import draw  # matplotlib: only when there is a directory

    draw(run, rows, folder)


class Session:
    """One fit, from its data to its run directory.

    Attributes:
        data: all rows; `train` and `held_out` (or None) are their two parts.
        seed: of the fit.
        path: the run directory, or None.
        checkpoint: file of the checkpoint, or None.
        record: contents of run.json, once `open` has been called.
        attempt: computes what comes after training; see `close`.

    Raises:
        ValueError: resume=True without a directory.
    """

    def __init__(self, data: Any, options: SessionOptions) -> None:
        if options.resume and options.directory is None:
            raise ValueError(
                "resume=True needs the directory of the run to continue. Pass directory=."
            )
        self._begun = time.perf_counter()
        self.options, self.seed = options, options.seed
        self.data = self._load(data, options.weights, options.exposure)
        self.train, self.held_out = split_validation(self.data, options.validation, self.seed)
        self._check_weights()
        self.path = None if options.directory is None else Path(options.directory)
        self.checkpoint = None if self.path is None else self.path / "checkpoint.safetensors"
        self.record: dict[str, Any] = {}
        self.attempt = Attempts()

    @staticmethod
    def _load(data: Any, weights: Any, exposure: Any) -> Data:
        if not isinstance(data, Data):
            return load_data(data, weights=weights, exposure=exposure)
        data = in_default_precision(data)
        for name, values in (("weights", weights), ("exposure", exposure)):
            if isinstance(values, str):
                raise ValueError(
                    f"{name}={values!r}: the data are loaded. Name the column in "
                    f"load_data(..., {name}=), or pass an array."
                )
        data = data if exposure is None else data.with_exposure(exposure)
        return data if weights is None else data.with_weights(weights)

    def _check_weights(self) -> None:
        if self.held_out is None:
            return
        if self.train.weights is None and self.held_out.weights is not None:
            raise ValueError("validation: only the held-out rows have weights. Weight all rows.")
        for name, rows in (("training", self.train), ("held-out", self.held_out)):
            if not rows.total_weight > 0:
                raise ValueError(f"weights: all {name} rows have the weight 0. Use another seed.")

    def repeat_weighted_rows(self, algorithm: str) -> None:
        """Repeat rows as often as their weights say, for an algorithm that takes no weights."""
        self.train = repeat_rows(self.train, algorithm)
        if self.held_out is not None:
            self.held_out = repeat_rows(self.held_out, algorithm)

    @property
    def evaluation_data(self) -> Data:
        """The rows held out, else the training rows."""
        return self.train if self.held_out is None else self.held_out

    @property
    def evaluation_name(self) -> str:
        """Name of `evaluation_data` in results."""
        return "training rows" if self.held_out is None else "held-out rows"

    @property
    def seconds(self) -> float:
        """Wall-clock time since the fit began."""
        return time.perf_counter() - self._begun

    def open(
        self,
        model: ModelFactory,
        guide: GuideFactory | None,
        options: dict[str, Any],
        *,
        definitions: Mapping[str, Any] | None = None,
        restarts: int = 1,
        load: Callable[[Path], Any] = load_run,
        **entries: Any,
    ) -> Any:
        """Write the record of this fit; a finished run of the same record is returned, else None.

        Args:
            options: the settled options, see `recorded`.
            definitions: programs and functions whose text may not determine them, by name.
            load: function that loads a finished run from its directory.
            entries: further entries of the record, such as `algorithm`.

        Raises:
            ValueError: the directory holds a run that is not to be resumed, or another one, or
                another process fits there.
            WriteError: the directory cannot be written.
        """
        share = self.options.validation
        self.record = {
            "model": model.recipe.record(),
            "guide": None if guide is None else guide.recipe.record(),
            **({"dtype": "float64"} if torch.get_default_dtype() is torch.float64 else {}),
            "objective": None,
            **entries,
            "request": self._request(model, guide, definitions or {}, **entries),
            "options": options,
            "num_restarts": restarts,
            **environment_record(
                self.data,
                train_rows=len(self.train),
                held_out_rows=0 if self.held_out is None else len(self.held_out),
                validation=share if isinstance(share, int | float) else None,
            ),
            "results": None,
        }
        if (path := self.path) is None:
            return None
        for factory in (model, guide):
            problem = None if factory is None else factory.reload_problem()
            if problem is not None and distributed.rank() == 0:
                warnings.warn(problem, stacklevel=4)
        finished = distributed.run_on_first(lambda: self._open(path, load))
        if distributed.broadcast_from_first(finished is not None):
            return finished or load(path)
        return None

    def _open(self, path: Path, load: Callable[[Path], Any]) -> Any:
        def opened() -> Any:
            return open_run_directory(path, self.record, self.options.resume, load)

        if (path / "run.json").exists():
            finished = opened()  # which may be in a directory that cannot be written
            if finished is not None:
                return finished
        resources = _resources.get()
        resources.enter_context(directory_lock(path))
        resources.enter_context(interrupts.announced(path))
        return opened()

    def _request(
        self,
        model: ModelFactory,
        guide: GuideFactory | None,
        definitions: Mapping[str, Any],
        **entries: Any,
    ) -> dict[str, Any]:
        """Parts of the identity that are not in the other entries of the record."""
        if self.path is None:
            return {}
        definitions = {**definitions, "schedule": getattr(self.options, "schedule", None)}
        definitions["optimizer"] = getattr(self.options, "optimizer", None)
        for role, factory in (("model", model), ("guide", guide)):
            if factory is not None and factory.recipe.digest is None:
                definitions[role] = factory.program
        digests = {name: definition_digest(value) for name, value in definitions.items()}
        held_out = isinstance(self.options.validation, int | float) or self.held_out is None
        return {
            **entries,
            "held_out": None if held_out else self.held_out and self.held_out.fingerprint(),
            "dtype": str(torch.get_default_dtype()),
            **{f"code of {name}": digest for name, digest in digests.items() if digest},
        }

    @property
    def identity(self) -> Identity:
        """Identity of the run, for its checkpoints."""
        return identity(self.record)

    def iterate(self, algorithm: Checkpointable, count: int) -> None:
        """Run `count` iterations, from the checkpoint if there is one, and write others."""
        seconds = self.options.checkpoint_seconds
        try:
            iterate_with_checkpoints(
                algorithm, count, self.checkpoint, seconds, self.identity, self.options.log
            )
        except RuntimeError as error:
            if not is_numerical(error):
                raise
            place = "" if self.checkpoint is None else f" The last checkpoint is {self.checkpoint}."
            raise NonFiniteError(
                f"{type(algorithm).__name__}: {reason_of(error).rstrip('.')}. Standardize the "
                f"columns, use double precision, or raise the model's floor.{place}"
            ) from error

    def evidence(
        self,
        pair: ModelGuidePair,
        rows: tuple[Tensor, ...],
        num_particles: int,
        weights: Tensor | None = None,
    ) -> dict[str, Any]:
        """The log evidence of the rows, for the results."""
        # With global latents, rows that were held out are new to a posterior of the others.
        new = self.held_out is not None
        evidence = log_evidence(
            pair,
            *rows,
            num_particles=num_particles,
            seed=self.seed,
            weights=weights,
            training_weights=self.train.weights,
            training=(lambda: first_rows(self.train, len(self.train))) if new else None,
        )
        return evidence_record(evidence, of=self.evaluation_name, rows=len(rows[0]))

    def evidence_rows(self, pair: ModelGuidePair, count: int) -> Data:
        """At most `count` rows of `evaluation_data`; all training rows if they share latents."""
        if self.held_out is None and shares_latents(pair, *first_rows(self.train, count)):
            return self.train
        return sample_rows(self.evaluation_data, count, self.seed)

    def close(
        self,
        run: R,
        evaluate: Callable[[], dict[str, Any]],
        *,
        name: str = EVIDENCE,
        draw: Callable[[Any, Data, Path], None] = draw_run,
        rows: Data | None = None,
    ) -> R:
        """Save the run, then evaluate it and draw its figures; return it whatever fails there.

        A result that fails is not computed: `results["not_computed"]` has the reason by its name,
        and one warning prints them.

        Args:
            evaluate: computes further results, here the result `name`.
            draw: function of the run, rows and a folder; by default for a `Run`.
            rows: shown in the figures (default: `evaluation_data`).
        """
        if isinstance(run, Run):
            run.training_data, run.held_out_data = self.train, self.held_out
        fitted: Any = run
        folder = self.path if distributed.rank() == 0 else None
        if folder is not None:
            fitted.results["directory"] = str(folder)
            # A process that ends below leaves a run that loads and that resume=True completes.
            self.record["evaluated"] = False
            fitted.results["not_computed"] = {**self.attempt.reasons, name: ENDED, "figures": ENDED}
            self.attempt(SAVED, lambda: fitted.save(folder))
        fitted.results.update(self.attempt(name, evaluate) or {})
        if folder is not None:
            shown = rows or self.evaluation_data
            self.attempt("figures", lambda: draw(fitted, shown, folder / "pictures"))
            self.record["evaluated"] = True
        fitted.results["not_computed"] = dict(self.attempt.reasons)
        if folder is not None:
            self.attempt(SAVED, lambda: write_record(folder, self.record))
            if SAVED in self.attempt.reasons:
                remedy = (
                    "run.save(directory) writes it elsewhere." if interrupts.in_python() else ""
                )
                remedy = remedy or interrupts.resume_hint(folder)
                self.attempt.reasons[SAVED] += f" The fit is in memory. {remedy}"
        if self.attempt.reasons and distributed.rank() == 0:
            listed = [f"{key}: not computed: {why}" for key, why in self.attempt.reasons.items()]
            warnings.warn("\n".join(listed), stacklevel=4)
        return run


def in_default_precision(data: Data) -> Data:
    """The data in the default precision: read again, or converted."""
    dtype = torch.get_default_dtype()
    some = data.batch(torch.tensor([0]))
    if all(t.dtype is dtype for t in some if t.is_floating_point()):
        return data
    if data.source is not None and data.rows is None:
        return load_data(**data.source)
    tensors = tuple(t.to(dtype) if t.is_floating_point() else t for t in data.tensors)
    return replace(load_data(tensors), name=data.name)


def recorded(options: SessionOptions, **settled: Any) -> dict[str, Any]:
    """Options for run.json as plain data; `settled` replaces values that were left open."""
    values = {f.name: getattr(options, f.name) for f in declared(type(options))}
    names = [f.name for f in declared(type(options)) if f.metadata["recorded"]]
    return {name: as_plain({**values, **settled}[name]) for name in names}


def as_plain(value: Any) -> Any:
    """Plain data as they are, anything else in call syntax."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else describe(value)


def degenerate_reason(model: Any, session: Session) -> str | None:
    """Reason of the model why its parameters must not be chosen, or None."""
    if not hasattr(model, "degenerate"):
        return None
    rows = initialization_rows(session.train)
    reason: str | None = session.attempt("degenerate", lambda: model.degenerate(*rows))
    return reason


def no_evidence(of: str) -> dict[str, Any]:
    """The log evidence in the results of a run before it is computed."""
    names = ("log_evidence", "log_evidence_standard_error", "log_evidence_monte_carlo_error")
    return {**dict.fromkeys(names), "log_evidence_of": of}
