"""Result of adversarial training, in memory and as a directory.

    run.json                  what was run, and results
    parameters.safetensors    of generator and discriminator, and some rows as a template
    history.json              see `Adversaries`
    checkpoint.safetensors    everything that `resume` needs
    pictures/                 training curve, and draws against data

The model has no likelihood and no guide: `load_run`, `compare` and `diagnose` refuse such a
directory.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.storage import save_checkpoint, write_json
from ppl_lvm.core.validate import Count, ProgramSource, Seed
from ppl_lvm.diagnostics.two_sample import TwoSample, discriminate
from ppl_lvm.divergences.density_ratio import Discriminator
from ppl_lvm.programs.sources import ProgramSpec, instantiate_from_record
from ppl_lvm.programs.trust import Trust
from ppl_lvm.runs.directory import write_record
from ppl_lvm.runs.files import (
    REMEDY,
    read_history,
    read_record,
    read_tensors,
    require_finite,
    verify_files,
)
from ppl_lvm.training.adversarial import load_state, state


@dataclass(frozen=True, kw_only=True)
class Adversaries:
    """A generator and its discriminator after training.

    Attributes:
        generator: `draw(n)` returns rows (n, P).
        discriminator: a(x) ≈ log p_D(x) - log p_G(x), (N,) of rows (N, P).
        history: "jensen_shannon" is log 2 - L/2 at each step, an estimate on the draws of that step
            of a lower bound on JS(p_D, p_G), nats; "generator" is the mean of f.
        record: the content of run.json.
        template: rows of the data (at most 256, P).
        directory: where the run is saved; None where it is in memory only.
    """

    generator: Any
    discriminator: nn.Module
    history: dict[str, list[float]]
    record: dict[str, Any] = field(repr=False)
    template: Tensor = field(repr=False)
    directory: Path | None = None

    @property
    def results(self) -> dict[str, Any]:
        """The numbers that `ppl-lvm fit --json` prints."""
        results: dict[str, Any] = self.record["results"]
        return results

    @public_call(runs_programs=False)
    def two_sample(self, x: Tensor, *, seed: Seed = 0) -> TwoSample:
        """Two-sample test of rows against as many draws, by a new discriminator of this kind."""
        samples = self.sample(len(x), seed=seed)
        discriminator = copy.deepcopy(self.discriminator)
        torch.manual_seed(seed)
        for part in discriminator.modules():
            reset = getattr(part, "reset_parameters", None)
            if reset is not None:
                reset()
        return discriminate(x, samples, discriminator=discriminator, seed=seed)

    @public_call(runs_programs=False)
    def sample(self, n: Count, *, seed: Seed = 0) -> Tensor:
        """n rows (n, P) of the generator."""
        torch.manual_seed(seed)
        with torch.no_grad():
            samples: Tensor = self.generator.draw(n)
        return samples

    def save(self, directory: Path) -> None:
        """Write the run to `directory`."""
        tensors = state(self.generator, self.discriminator) | {"template": self.template}
        save_checkpoint(directory / "parameters.safetensors", tensors, {})
        write_json(directory / "history.json", self.history)
        write_record(directory, self.record)


@public_call
def load_adversaries(
    directory: str | Path,
    *,
    trust: bool | Sequence[str] = False,
    generator: ProgramSource | None = None,
    discriminator: nn.Module | None = None,
) -> Adversaries:
    """Load a generator and its discriminator from their directory.

    Pass `generator` where it has no address, and `discriminator` where it was not the default.
    `trust` is that of `load_run`.

    Raises:
        FileNotFoundError: the directory is no run directory.
        UntrustedError: the generator is a program that is not trusted; a `ValueError`.
        ValueError: the run is damaged, unfinished or of another kind.
    """
    directory = Path(directory)
    record = read_record(directory)
    if record["guide"] is not None:
        raise ValueError(
            f"{directory} holds a run with a guide. Use ppl_lvm.runs.directory.load_run."
        )
    if record["results"] is None:
        raise ValueError(f"The run in {directory} has not finished. Continue it with resume=True.")
    verify_files(directory, record)
    tensors = read_tensors(directory, "parameters")
    template = tensors.get("template", torch.empty(()))
    if template.dim() != 2 or not template.is_floating_point() or not len(template):
        raise ValueError(
            f"{directory}/parameters.safetensors is damaged: it has no example rows. {REMEDY}"
        )
    require_finite(directory, tensors)
    history = read_history(directory, "generator", record["results"]["steps"])
    built: Any = instantiate_from_record(
        ProgramSpec(**record["model"]),
        generator,
        (template,),
        what="model",
        trust=Trust.of(trust, directory),
    )
    if discriminator is None:
        if record.get("discriminator") is not None:
            raise ValueError(
                f"The discriminator was a user's {record['discriminator']}. Pass it: "
                "load_adversaries(directory, discriminator=...)."
            )
        discriminator = Discriminator(template)
    built, discriminator = copy.deepcopy(built), copy.deepcopy(discriminator)
    try:
        load_state(built, discriminator, tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{directory}/parameters.safetensors: its tensors do not fit the generator and the "
            f"discriminator: {' '.join(str(error).split())} Pass those that were trained."
        ) from None
    return Adversaries(
        generator=built,
        discriminator=discriminator,
        history=history,
        record=record,
        template=template,
        directory=directory,
    )
