"""What a fit leaves behind, in memory and as a directory.

    run.json                  what was run (addresses, settings, seed, versions, data) and results
    parameters.safetensors    the parameters, and some rows of the data as a template
    trails.safetensors        some of each start's way, for the diagnostics
    draws.safetensors         of the training rows' posterior by a chain, where the fit drew any
    history.json              bound at every step, validation bound at every evaluation
    checkpoint.safetensors    everything that `resume` needs
    pictures/                 training curve and what suits the model

Nothing in it is executed when it is loaded: programs are imported from where they stood when
they were fitted, or handed to `load_run`.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.storage import load_checkpoint, save_checkpoint, write_json
from ppl_lvm.data import Data, load_data
from ppl_lvm.diagnostics.diagnosis import Diagnosis, Say, diagnose, eligible_restarts
from ppl_lvm.estimators.objectives import objective as make_objective
from ppl_lvm.posterior import predict
from ppl_lvm.posterior.evidence import Evidence, log_evidence
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.sources import ProgramSpec, instantiate_from_record, source_digest
from ppl_lvm.training.trajectory import Trajectory, pack, unpack

if TYPE_CHECKING:
    from ppl_lvm.posterior.arviz_export import Draws

TEMPLATE_ROWS = 256


class Run:
    """A fitted pair and its story.

    Attributes:
        model, guide: the fitted programs (copies; yours stay as they were).
        history: "bound" (one value a step), "validation_step", "validation_bound",
            "learning_rate" (one an evaluation). Bounds are in nats per row.
        results: the figures that `ppl-lvm fit --json` prints.
        record: all that run.json holds.
        restarts: one entry a restart: seed, bound, and why it was not chosen.
        trails: what each restart left for the diagnostics, see `ppl_lvm.training.trajectory`.
        draws: latent site -> (S, …), one chain from the posterior of the training rows; empty
            unless the fit drew them (Monte-Carlo EM).
        directory: where it is kept; None where it is only in memory.
    """

    def __init__(
        self,
        pair: ModelGuidePair,
        template: tuple[Tensor, ...],
        history: dict[str, list[float]],
        record: dict[str, Any],
        directory: Path | None = None,
        trails: Sequence[Trajectory] = (),
        draws: Mapping[str, Tensor] | None = None,
    ) -> None:
        pair.eval_mode()
        self.draws = dict(draws or {})
        self.trajectories = tuple(trails)
        self.pair, self.example_rows = pair, template
        self.history, self.record, self.directory = history, record, directory

    @property
    def model(self) -> Callable[..., Any]:
        return self.pair.model

    @property
    def guide(self) -> Callable[..., Any]:
        return self.pair.guide

    @property
    def results(self) -> dict[str, Any]:
        return self.record["results"]

    @property
    def restarts(self) -> list[dict[str, Any]]:
        return self.record["restarts"]

    def __repr__(self) -> str:
        place = f" in {self.directory}" if self.directory is not None else ""
        return f"<Run of {self.record['model']['name']}: bound {self.results['bound']:.4f}{place}>"

    def parameters(self) -> dict[str, Tensor]:
        """Name -> constrained value, detached."""
        return self.pair.parameters()

    def sample(self, n: int, x: Any = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draw n rows from the model: site -> (n, …), latent and observed sites.

        A model that conditions on inputs reads them from `x` (n rows), or from the first rows of
        the training data, repeated.
        """
        batch = self._rows(n) if x is None else self.batch(x)
        with nullcontext() if seed is None else preserve_rng():
            if seed is not None:
                torch.manual_seed(seed)
            return predict.sample(self.pair, *batch)

    def encode(self, x: Any) -> dict[str, Tensor]:
        """Local latent site -> mean of q(z | x) (N, D), or probabilities of states (N, states)."""
        return predict.encode(self.pair, *self.batch(x))

    def decode(self, z: Tensor | Mapping[str, Tensor], x: Any = None) -> dict[str, Tensor]:
        """Observed site -> mean of p(x | z) at codes z: one tensor, or site -> tensor."""
        codes = dict(z) if isinstance(z, Mapping) else {self._only_code(): z}
        rows = len(next(iter(codes.values())))
        batch = self._rows(rows) if x is None else self.batch(x)
        return predict.decode(self.pair, codes, *batch)

    def edit(self, x: Any, attribute: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        """Observed site -> its mean at the codes of `x`, moved by `strength` · `attribute`.

        `ppl_lvm.posterior.latent_arithmetic.attribute_vector(run, x, labels)` makes attributes.
        """
        from ppl_lvm.posterior.latent_arithmetic import edit

        return edit(self, x, attribute, strength)

    def log_evidence(self, x: Any, num_particles: int = 1000, *, seed: int = 0) -> Evidence:
        """Importance-weighted log p(x), nats per row, with its standard errors."""
        return log_evidence(
            self.pair,
            *self.batch(x),
            num_particles=num_particles,
            seed=seed,
        )

    def to_arviz(
        self, x: Any, *, num_samples: int = 1000, draws: "Draws" = "q", seed: int = 0
    ) -> Any:
        """ArviZ data: posterior, predictive, log-likelihood, prior, observed data; one chain.

        `draws` "weighted" adds importance weights, "resampled" draws by them; see `export`.
        """
        from ppl_lvm.posterior.arviz_export import to_arviz

        batch = self.batch(x)
        return to_arviz(self.pair, *batch, num_samples=num_samples, draws=draws, seed=seed)

    def data(self) -> tuple[Data, Data | None]:
        """The rows it was fitted to and those it was not, loaded and split as they were then.

        Raises:
            ValueError: the data had no name or path, or have changed since.
        """
        record = self.record["data"]
        if record["source"] is None:
            raise ValueError(
                f"The data ({record['name']}) had no name or path to load them by; pass them."
            )
        whole = load_data(**record["source"])
        if whole.fingerprint() != record["fingerprint"]:
            raise ValueError(f"{record['name']} has changed since the run was made; pass the data.")
        if not record["validation"]:
            return whole, None
        return whole.split(record["validation"], self.record["options"]["seed"])

    def diagnose(
        self,
        x: Any = None,
        *,
        held_out: Any = None,
        quantities: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        refits: int = 0,
        temperatures: int = 100,
        seed: int = 0,
        say: Say | None = None,
    ) -> Diagnosis:
        """Can this fit be trusted? A table of questions with figures, verdicts and remedies.

        Args:
            x: the rows it was fitted to (default: loaded by name or path, with those held out).
            held_out: rows it has not seen.
            quantities: test quantities of your own, name -> a function of data sets (R, N, P)
                that gives one number each (R,).
            refits: how often a guide that does not read the data is fitted to simulated data, to
                see whether it is calibrated.
            temperatures: of the annealing behind log p(x) and its sandwich.
            say: called as say(name, done, total) before each diagnostic.
        """
        if x is None:
            x, held_out = self.data()
        return diagnose(
            self.pair,
            self.history,
            *self.batch(x),
            held_out=None if held_out is None else self.batch(held_out),
            starts=eligible_restarts(self.restarts, self.trajectories),
            quantities=quantities,
            refits=refits,
            temperatures=temperatures,
            seed=seed,
            say=say,
        )

    def batch(self, x: Any) -> tuple[Tensor, ...]:
        """Data as the model takes it: a tensor, an array, a tuple of them, a name or a file.

        Gaps are let through where the run was fitted to such, and of a file the same columns are
        taken; load it yourself (`load_data`) where that is not meant.
        """
        data = x if isinstance(x, Data) else load_data(x, **self._as_fitted(x))
        return data.batch(torch.arange(len(data)))

    def _as_fitted(self, x: Any) -> dict[str, Any]:
        """What `load_data` was told of the data that the run was fitted to."""
        own = self.record["data"]["source"] or {}
        floats = [t for t in self.example_rows if t.is_floating_point()]
        kept = own.get("missing") == "keep" or any(t.isnan().any() for t in floats)
        asked: dict[str, Any] = {"missing": "keep"} if kept else {}
        if isinstance(x, str | Path) and Path(own.get("source", "")).suffix == Path(x).suffix != "":
            asked["columns"] = own["columns"]
        return asked

    def _rows(self, n: int) -> tuple[Tensor, ...]:
        index = torch.arange(n) % len(self.example_rows[0])
        return tuple(t[index] for t in self.example_rows)

    def _only_code(self) -> str:
        names = sorted(predict.encode(self.pair, *self.example_rows))
        if len(names) != 1:
            raise ValueError(
                f"The model has the local latents {names}; pass a dictionary, site -> codes."
            )
        return names[0]

    def save(self, directory: str | Path) -> None:
        """Write the run to `directory`."""
        self.directory = Path(directory)
        template = {f"template/{i}": t for i, t in enumerate(self.example_rows)}
        tensors = {**self.pair.state(), **template}
        save_checkpoint(self.directory / "parameters.safetensors", tensors, {})
        save_checkpoint(self.directory / "trails.safetensors", pack(self.trajectories), {})
        if self.draws:
            save_checkpoint(self.directory / "draws.safetensors", self.draws, {})
        write_json(self.directory / "history.json", self.history)
        write_json(self.directory / "run.json", self.record)


def environment_record(
    data: Data, *, train_rows: int, held_out_rows: int = 0, validation: float | None = None
) -> dict[str, Any]:
    """What run.json says of the data and of the versions that a run was made with."""
    return {
        "data": {
            "name": data.name,
            "source": data.source,
            "validation": validation,
            "fingerprint": data.fingerprint(),
            "tensors": data.num_tensors,
            "train_rows": train_rows,
            "held_out_rows": held_out_rows,
        },
        "versions": {n: version(n) for n in ("ppl_lvm", "torch", "pyro-ppl", "numpy")},
        "threads": torch.get_num_threads(),
    }


def evidence_record(evidence: Evidence, *, of: str, rows: int) -> dict[str, Any]:
    """What run.json says of the log evidence of `rows` rows, nats per row."""
    return {
        "log_evidence": evidence.value,
        "log_evidence_standard_error": evidence.standard_error,
        "log_evidence_monte_carlo_error": evidence.monte_carlo_error,
        "log_evidence_of": of,
        "log_evidence_rows": rows,
        "num_particles": evidence.num_particles,
    }


def read_record(directory: str | Path) -> dict[str, Any]:
    """run.json of a run directory.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is damaged.
    """
    path = Path(directory) / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is not a run directory: it has no run.json.")
    try:
        record = json.loads(path.read_text())
        for key in ("model", "guide", "objective", "data", "options"):
            record[key]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}). Fit again.") from None
    return record


def load_run(directory: str | Path, *, model: Any = None, guide: Any = None) -> Run:
    """A run from its directory.

    The programs are imported from the addresses in run.json and built with the settings there.
    Pass `model` and `guide` where they have no address (made in a function, typed at a prompt)
    or where you would rather not import what the directory names.

    Raises:
        FileNotFoundError, ValueError: no such run, damaged, unfinished, or the programs changed.
    """
    directory = Path(directory)
    record = read_record(directory)
    if record["guide"] is None:
        raise ValueError(
            f"The run in {directory} is of a model without a likelihood, "
            f"{record['model']['name']}: nothing can be said of log p(x) or of codes. Open it with "
            "ppl_lvm.fitting.adversarial.load_adversaries(directory)."
        )
    if record.get("results") is None:
        raise ValueError(f"The run in {directory} has not finished. Continue it with resume=True.")
    tensors, _ = load_checkpoint(directory / "parameters.safetensors")
    template = tuple(tensors[f"template/{i}"] for i in range(record["data"]["tensors"]))
    history = json.loads((directory / "history.json").read_text())
    recipes = {role: ProgramSpec(**record[role]) for role in ("model", "guide")}
    for role, given in (("model", model), ("guide", guide)):
        stored = recipes[role]
        if given is None and stored.digest and stored.digest != source_digest(stored.address):
            warnings.warn(
                f"{stored.address} has changed since the run was made; its {role} may no longer "
                "be the one that was fitted.",
                stacklevel=2,
            )
    built_model = instantiate_from_record(recipes["model"], model, template, what="model")
    built_guide = instantiate_from_record(
        recipes["guide"], guide, template, what="guide", model=built_model
    )
    pair = ModelGuidePair(built_model, built_guide, make_objective(record["objective"]))
    pair.materialize_parameters(*template)
    pair.initialize_objective(pair.model, pair.guide, *template)
    pair.load_state(tensors)
    trails = directory / "trails.safetensors"
    left = unpack(load_checkpoint(trails)[0]) if trails.exists() else []
    chain = directory / "draws.safetensors"
    draws = load_checkpoint(chain)[0] if chain.exists() else {}
    return Run(pair, template, history, record, directory, left, draws)
