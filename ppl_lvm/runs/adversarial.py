"""What adversarial training leaves behind, in memory and as a directory.

    run.json                  what was run and what came of it
    parameters.safetensors    of generator and discriminator, and some rows as a template
    history.json              see `Adversaries`
    checkpoint.safetensors    everything that `resume` needs
    pictures/                 the training, and draws beside data

There is no likelihood and no guide: `load_run`, `compare` and `diagnose` refuse such a directory.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.storage import load_checkpoint, save_checkpoint, write_json
from ppl_lvm.diagnostics.predictive_checks import TwoSample
from ppl_lvm.diagnostics.two_sample import discriminate
from ppl_lvm.divergences.density_ratio import Discriminator
from ppl_lvm.programs.sources import ProgramSpec, instantiate_from_record
from ppl_lvm.runs.directory import read_record
from ppl_lvm.training.adversarial import load_state, state


@dataclass(frozen=True)
class Adversaries:
    """A generator and its discriminator after training.

    Attributes:
        generator: `draw(n)` gives rows (n, P).
        discriminator: a(x) ≈ log p_D(x) - log p_G(x), (N,) of rows (N, P).
        history: "jensen_shannon": log 2 - L/2 at each step, which estimates a lower bound on
            JS(p_D, p_G) on the draws of that step, nats; "generator": the mean of f.
        record: all that run.json holds.
        template: rows of the data (at most 256, P).
        directory: where it is kept; None where it is only in memory.
    """

    generator: Any
    discriminator: nn.Module
    history: dict[str, list[float]]
    record: dict[str, Any] = field(repr=False)
    template: Tensor = field(repr=False)
    directory: Path | None = None

    @property
    def results(self) -> dict[str, Any]:
        """The figures that `ppl-lvm fit --json` prints."""
        found: dict[str, Any] = self.record["results"]
        return found

    def two_sample(self, x: Tensor, *, seed: int = 0) -> TwoSample:
        """Can a new discriminator of the same kind tell these rows from as many draws?"""
        drawn = self.sample(len(x), seed=seed)
        fresh = copy.deepcopy(self.discriminator)
        with preserve_rng():
            torch.manual_seed(seed)
            for part in fresh.modules():
                reset = getattr(part, "reset_parameters", None)
                if reset is not None:
                    reset()
        return discriminate(x, drawn, discriminator=fresh, seed=seed)

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """n rows (n, P) of the generator."""
        with torch.no_grad(), preserve_rng():
            torch.manual_seed(seed)
            drawn: Tensor = self.generator.draw(n)
        return drawn

    def save(self, directory: Path) -> None:
        """Write it to `directory`."""
        tensors = state(self.generator, self.discriminator) | {"template": self.template}
        save_checkpoint(directory / "parameters.safetensors", tensors, {})
        write_json(directory / "history.json", self.history)
        write_json(directory / "run.json", self.record)


def load_adversaries(
    directory: str | Path, *, generator: Any = None, discriminator: nn.Module | None = None
) -> Adversaries:
    """A generator and its discriminator from their directory.

    Pass `generator` where it has no address, and `discriminator` where it was not the default.

    Raises:
        FileNotFoundError, ValueError: no such run, damaged, unfinished, or of another kind.
    """
    directory = Path(directory)
    record = read_record(directory)
    if record["guide"] is not None:
        raise ValueError(
            f"{directory} holds a run with a guide: use ppl_lvm.runs.directory.load_run."
        )
    if record["results"] is None:
        raise ValueError(f"The run in {directory} has not finished. Continue it with resume=True.")
    tensors, _ = load_checkpoint(directory / "parameters.safetensors")
    template = tensors["template"]
    made: Any = instantiate_from_record(
        ProgramSpec(**record["model"]), generator, (template,), what="model"
    )
    if discriminator is None:
        if record["discriminator"] is not None:
            raise ValueError(
                f"The discriminator was a {record['discriminator']} of your own; pass it: "
                "load_adversaries(directory, discriminator=...)."
            )
        discriminator = Discriminator(template)
    made, discriminator = copy.deepcopy(made), copy.deepcopy(discriminator)
    load_state(made, discriminator, tensors)
    history = json.loads((directory / "history.json").read_text())
    return Adversaries(made, discriminator, history, record, template, directory)
