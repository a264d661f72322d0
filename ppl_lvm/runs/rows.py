"""Rows of a run, read as the training rows were."""

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.distributions import named_distribution_errors
from ppl_lvm.core.frames import TOOLKIT, in_package, module_name, traceback_frames
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.validate import DataSource, Whole
from ppl_lvm.data import Data, in_order, load_data
from ppl_lvm.data.selection import first_rows, sample_rows
from ppl_lvm.data.validation import Missing
from ppl_lvm.data.weights import repeat_rows
from ppl_lvm.posterior.evidence import reason_for_training_rows, shares_latents
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.precision import default_dtype
from ppl_lvm.runs.record import has_weights

BATCH_ROWS = 16_384  # of rows on disk
FIRST_ROWS = 256  # of them, from which the structure of a pair is known

P = ParamSpec("P")
R = TypeVar("R")


def names_faults(method: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a method of rows: an error inside the programs names the site, or the rows.

    Raises:
        ValueError: in place of an error of torch or Pyro, where the rows `x` are of another shape
            or type than those of the fit.
    """
    names = inspect.signature(method)

    @named_distribution_errors()
    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            *_, (frame, _) = traceback_frames(error)
            x = names.bind(*args, **kwargs).arguments.get("x")
            sentence = isinstance(error, ValueError) and in_package(module_name(frame), TOOLKIT)
            if x is None or sentence:
                raise
            run: Any = args[0]
            for part, known in zip(run.batch(x), run.example_rows, strict=False):
                if part.shape[1:] != known.shape[1:] or part.dtype != known.dtype:
                    raise ValueError(
                        f"{method.__name__}: x has rows of shape {tuple(part.shape[1:])} of "
                        f"{part.dtype}, and the fit had {tuple(known.shape[1:])} of {known.dtype}. "
                        "Pass rows like those of the fit."
                    ) from error
            raise

    return call


def _in_precision(pair: ModelGuidePair, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if pair.dtype is None:
        return batch
    return tuple(t.to(pair.dtype) if t.is_floating_point() else t for t in batch)


def _are_one_batch(pair: ModelGuidePair, data: Data) -> bool:
    """True for rows in memory, and for rows that share latents."""
    if data.blocks is None:
        return True
    return shares_latents(pair, *_in_precision(pair, first_rows(data, FIRST_ROWS)))


def few_rows(pair: ModelGuidePair, data: Data, count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """All rows in memory as one batch; of independent rows on disk a sample of `count`."""
    if not _are_one_batch(pair, data):
        data = sample_rows(data, count, seed)
    return _in_precision(pair, data.batch(torch.arange(len(data))))


def batches(pair: ModelGuidePair, data: Data) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
    """Batches as the model takes them, with their weights.

    Rows in memory, and rows that share latents, are one batch.
    """
    size = len(data) if _are_one_batch(pair, data) else BATCH_ROWS
    for index in in_order(data, size):
        weights = None if data.weights is None else data.weights[index]
        yield _in_precision(pair, data.batch(index)), weights


class RunRows:
    """The part of a `Run` that reads rows."""

    pair: ModelGuidePair
    record: dict[str, Any]
    example_rows: tuple[Tensor, ...]
    training_data: Data | None
    held_out_data: Data | None

    @checked
    def is_training_data(self, batch: tuple[Tensor, ...]) -> bool:
        """True if the rows are as many as the training rows, and begin with the example rows."""
        if len(batch[0]) != self.record["data"]["train_rows"]:
            return False
        return all(
            torch.equal(a[: len(b)].isnan(), b.isnan())
            and torch.equal(a[: len(b)].nan_to_num(), b.nan_to_num())
            for a, b in zip(batch, self.example_rows, strict=False)
        )

    def training_rows(self) -> tuple[Tensor, ...]:
        """The training rows, which the posterior of global latents is conditioned on.

        Where they cannot be loaded the example rows stand for them, if the guide does not read
        data and rows share no enumerated site.

        Raises:
            ValueError: the rows are needed and cannot be loaded.
        """
        if self.training_data is not None:
            return self.batch(self.training_data)
        if len(self.example_rows[0]) == self.record["data"]["train_rows"]:
            return self.example_rows
        try:
            return self.batch(self.data()[0])
        except (ValueError, FileNotFoundError) as error:
            needed = reason_for_training_rows(self.pair, self.example_rows)
            if needed:
                raise ValueError(
                    "The predictive density of new rows needs the training rows, because "
                    f"{needed}. {error}"
                ) from error
            return self.example_rows

    def training_weights(self) -> Tensor | None:
        """Weights of `training_rows`; None if all are equal, or cannot matter.

        Raises:
            ValueError: the weights are needed and cannot be loaded.
        """
        if not has_weights(self.record):
            return None
        try:
            return self.data()[0].weights
        except (ValueError, FileNotFoundError):
            if reason_for_training_rows(self.pair, self.example_rows):
                raise
            return None

    @public_call(runs_programs=False)
    def data(self) -> tuple[Data, Data | None]:
        """Training and held-out rows; of a run that was loaded, loaded and split again.

        Raises:
            ValueError: the data had no name or path, or have changed since.
        """
        record = self.record["data"]
        if self.training_data is not None:
            return self.training_data, self.held_out_data
        if record["source"] is None:
            raise ValueError(
                f"The data ({record['name']}) had no name or path to load them by. Pass them as x."
            )
        with default_dtype(self.pair.dtype):
            whole = load_data(**record["source"])
        if whole.fingerprint() != record["fingerprint"]:
            raise ValueError(f"{record['name']} has changed since the run was made; pass the data.")
        parts: tuple[Data, Data | None] = whole, None
        if record["validation"]:
            parts = whole.split(record["validation"], self.record["options"]["seed"])
        if len(parts[0]) == record["train_rows"]:
            return parts
        train, held_out = parts  # an algorithm that takes no weights was given repeated rows
        return repeat_rows(train, "data"), held_out and repeat_rows(held_out, "data")

    @public_call(runs_programs=False)
    def rows(self, x: DataSource, *, missing: Missing | None = None) -> Data:
        """Data read as the training data were: a tensor, an array, a tuple of them, a name, a file.

        Missing values are accepted where the training data had some (or by `missing`), and a file
        is read with the same columns. Load the data with `load_data` to read them otherwise.
        """
        if isinstance(x, Data):
            return x
        options = self._load_options(x) | ({} if missing is None else {"missing": missing})
        with default_dtype(self.pair.dtype):
            return load_data(x, **options)

    @public_call(runs_programs=False)
    def batch(self, x: DataSource) -> tuple[Tensor, ...]:
        """Data as the model takes it, see `rows`, in its precision."""
        data = self.rows(x)
        return _in_precision(self.pair, data.batch(torch.arange(len(data))))

    def _load_options(self, x: Any) -> dict[str, Any]:
        """Arguments of `load_data` that read `x` as the training data were read."""
        source = self.record["data"]["source"] or {}
        floats = [t for t in self.example_rows if t.is_floating_point()]
        has_missing = source.get("missing") == "keep" or any(t.isnan().any() for t in floats)
        options: dict[str, Any] = {"missing": "keep"} if has_missing else {}
        if isinstance(x, str | Path):
            suffix = Path(x).suffix
            if suffix and Path(source.get("source", "")).suffix == suffix:
                options["columns"] = source["columns"]
                options["exposure"] = source.get("exposure")
                if "shuffle_buffer" in source:
                    options["shuffle_buffer"] = source["shuffle_buffer"]
                if source.get("one_sequence"):
                    options["one_sequence"] = True
        return options

    @checked
    def example_batch(self, n: Whole) -> tuple[Tensor, ...]:
        """n example rows, repeated where there are fewer."""
        index = torch.arange(n) % len(self.example_rows[0])
        return tuple(t[index] for t in self.example_rows)
