"""Codes of rows, in memory or in a Parquet file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.storage import write_parquet
from ppl_lvm.core.types import Array
from ppl_lvm.data import Data
from ppl_lvm.posterior import predict
from ppl_lvm.runs.rows import batches

Run = Any  # ppl_lvm.runs.run.Run, which imports this module


def encode(run: Run, data: Data, output: str | Path | None) -> dict[str, Tensor]:
    """See `Run.encode`."""
    if output is None:
        parts = list(_codes(run, data))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    path = Path(output)
    if path.suffix != ".parquet":
        raise ValueError(f"output: {path} is no .parquet file. Name one, codes.parquet.")
    write_parquet(path, map(_columns, _codes(run, data)))
    return {}


def _codes(run: Run, data: Data) -> Iterator[dict[str, Tensor]]:
    for batch, _ in batches(run.pair, data):
        for name in predict.joint_latents(run.pair, *batch):
            raise ValueError(
                f"encode: {name!r} holds all training rows together, so that a row has no code of "
                f"it. Its posterior is run.to_arviz(rows).posterior[{name!r}]."
            )
        yield predict.encode(run.pair, *batch)


def _columns(codes: dict[str, Tensor]) -> dict[str, Array]:
    columns: dict[str, Array] = {}
    for name, code in codes.items():
        if code.dim() == 1:
            columns[name] = code.cpu().numpy()
        else:
            for k, column in enumerate(code.flatten(1).T.contiguous().cpu().numpy()):
                columns[f"{name}_{k}"] = column
    return columns
