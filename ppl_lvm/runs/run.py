"""A fitted pair with its history and results."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_lvm.core.html_tables import html_facts
from ppl_lvm.core.messages import nats
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.types import Draws, Say
from ppl_lvm.core.validate import Count, DataSource, Seed, Whole
from ppl_lvm.data import Data
from ppl_lvm.data.weights import repeat_rows
from ppl_lvm.posterior import predict
from ppl_lvm.posterior.evidence import Evidence
from ppl_lvm.posterior.predictions import Prediction
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.runs import encoding, posteriors
from ppl_lvm.runs.record import has_weights
from ppl_lvm.runs.rows import RunRows, few_rows, names_faults
from ppl_lvm.training.trajectory import Trajectory

if TYPE_CHECKING:
    from pandas import DataFrame

    from ppl_lvm.diagnostics.diagnosis import Diagnosis

TEMPLATE_ROWS = 256  # of the training data, stored with a run


class Run(RunRows):
    """A fitted pair with its history and results.

    Attributes:
        pair: the fitted programs and their objective, in evaluation mode (copies; the caller's
            stay as they were).
        example_rows: some training rows, as the model takes them.
        history: "bound" (one value per step), "validation_step", "validation_bound" and
            "learning_rate" (one per evaluation). Bounds are in nats per row.
        record: the content of run.json.
        directory: where the run is saved; None where it is in memory only.
        trajectories: the diagnostics' data of each restart, see `ppl_lvm.training.trajectory`.
        draws: latent site -> (S, …), chains from the posterior of the training rows; empty
            unless the fit drew them.
        training_data, held_out_data: the rows of the fit; None in a run that was loaded.
    """

    def __init__(
        self,
        pair: ModelGuidePair,
        template: tuple[Tensor, ...],
        history: dict[str, list[float]],
        record: dict[str, Any],
        *,
        directory: Path | None = None,
        trajectories: Sequence[Trajectory] = (),
        draws: Mapping[str, Tensor] | None = None,
    ) -> None:
        pair.eval_mode()
        self.pair, self.example_rows = pair, template
        self.history, self.record, self.directory = history, record, directory
        self.trajectories = tuple(trajectories)
        self.draws = dict(draws or {})
        self.training_data = self.held_out_data = None

    @property
    def model(self) -> Callable[..., Any]:
        """The fitted model."""
        return self.pair.model

    @property
    def guide(self) -> Callable[..., Any]:
        """The fitted guide."""
        return self.pair.guide

    @property
    def results(self) -> dict[str, Any]:
        """The numbers that `ppl-lvm fit --json` prints."""
        results: dict[str, Any] = self.record["results"]
        return results

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """One entry per restart: seed, bound, and the reason why it was rejected."""
        restarts: list[dict[str, Any]] = self.record["restarts"]
        return restarts

    def __repr__(self) -> str:
        place = f" in {self.directory}" if self.directory is not None else ""
        results = self.results
        verdict = ""
        if results.get("converged") is False:
            verdict = f", not converged after {results['steps']} iterations"
        if results.get("degenerate"):
            verdict += ", degenerate"
        name = self.record["model"]["name"]
        error = results.get("bound_monte_carlo_error")
        bound = nats(results["bound"], f" ± {error:.4f}" if error else "")
        return f"<Run of {name}: bound {bound}{verdict}{place}>"

    def _repr_html_(self) -> str:
        record, results = self.record, self.results
        data, guide = record["data"], record["guide"]
        error = results.get("bound_monte_carlo_error")
        facts = {
            "model": record["model"]["name"],
            "guide": None if guide is None else guide["name"],
            "objective": record["objective"],
            "data": f"{data['name']}, {data['train_rows']} rows",
            "bound": nats(results["bound"], f" ± {error:.4f}" if error else "") + " nats per row",
            "held out": nats(results["held_out"]) if results.get("held_out") is not None else None,
            "converged": results.get("converged"),
            "degenerate": results.get("degenerate") or None,
            "directory": self.directory,
        }
        return html_facts(facts, "Run")

    @property
    def plot(self) -> Any:
        """Pictures by name, `run.plot.training()`; see `ppl_lvm.report.run_plots`."""
        # By name, since reports are a layer above.
        return import_module("ppl_lvm.report.run_plots").RunPlots(self)

    @public_call(runs_programs=False)
    def history_frame(self) -> "DataFrame":
        """The history as a table with one row per step.

        Columns: bound, and at evaluations validation_bound and learning_rate.
        """
        from pandas import DataFrame, Index

        frame = DataFrame({"bound": self.history["bound"]})
        frame.index = Index(range(1, len(frame) + 1), name="step")
        steps = [int(step) for step in self.history.get("validation_step", [])]
        for name in ("validation_bound", "learning_rate"):
            if values := self.history.get(name):
                frame.loc[steps[: len(values)], name] = values
        return frame

    def parameters(self) -> dict[str, Tensor]:
        """Name -> constrained value, detached."""
        return self.pair.parameters()

    @public_call
    @names_faults
    def sample(self, n: Count, x: DataSource | None = None, *, seed: Seed = 0) -> dict[str, Tensor]:
        """Draw n rows from the model: site -> (n, …), latent and observed sites.

        The draws of a seed are always the same; another seed gives others.

        A model that conditions on inputs reads them from `x` (n rows). Without `x` it reads the
        first rows of the training data, repeated. Global latents that are summed out of the model
        are drawn given the first training rows.
        """
        batch = self.example_batch(n) if x is None else self.batch(x)
        torch.manual_seed(seed)
        return predict.sample(self.pair, *batch, training_rows=self.example_rows)

    @public_call
    @names_faults
    def encode(self, x: DataSource, *, output: str | Path | None = None) -> dict[str, Tensor]:
        """Local latent site -> mean of q(z | x) (N, D), or marginal probabilities (N, states).

        Args:
            output: a .parquet file for the codes, written as they are computed. It has columns z,
                or z_0, z_1, … of a site z. The result is then empty.

        Raises:
            ValueError: a latent holds all rows together.
            WriteError: the file cannot be written.
        """
        return encoding.encode(self, self.rows(x), output)

    @public_call
    @names_faults
    def decode(
        self, z: Tensor | Mapping[str, Tensor], x: DataSource | None = None
    ) -> dict[str, Tensor]:
        """Observed site -> mean of p(x | z) at codes z: one tensor, or site -> tensor."""
        codes = dict(z) if isinstance(z, Mapping) else {self._only_code(): z}
        if x is None and not codes:
            raise ValueError("Codes: none are given. Pass a dictionary, site -> codes, or rows x.")
        for name, code in codes.items():
            if not code.dim() or not len(code) or code.is_sparse or code.is_meta:
                raise ValueError(
                    f"decode: the codes z of {name!r} are no rows ({code.layout}, "
                    f"{tuple(code.shape)}). Pass codes as run.encode(x)[{name!r}] has them."
                )
        rows = 0 if x is not None else len(next(iter(codes.values())))
        batch = self.example_batch(rows) if x is None else self.batch(x)
        return predict.decode(self.pair, codes, *batch, training_rows=self.example_rows)

    @public_call
    @names_faults
    def impute(
        self, x: DataSource, *, num_samples: Count | None = None, seed: Seed = 0
    ) -> dict[str, Tensor]:
        """Observed site -> rows with missing values (NaN) replaced, given the row's other values.

        Conditional means (N, P), or with `num_samples` that many draws of the conditional
        distribution (num_samples, N, P). Gaussian mixtures and factor models have closed forms; see
        `ppl_lvm.posterior.imputation`.

        Raises:
            ValueError: the model observes dependent values, or values that are no argument.
        """
        from ppl_lvm.posterior.imputation import impute

        batch = self.batch(self.rows(x, missing="keep"))
        return impute(self.pair, *batch, num_samples=num_samples, seed=seed)

    @public_call
    @names_faults
    def edit(self, x: DataSource, attribute: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        """Observed site -> its mean at the codes of `x` plus `strength` · `attribute`.

        Attributes come from `ppl_lvm.posterior.latent_arithmetic.attribute_vector`.
        """
        from ppl_lvm.posterior.latent_arithmetic import edit

        return edit(self, x, attribute, strength)

    @public_call
    @names_faults
    def log_evidence(
        self, x: DataSource, num_particles: Count = 1000, *, seed: Seed = 0
    ) -> Evidence:
        """Importance-weighted log p(x), nats per row, with its errors.

        Without global latents rows are independent, and the value is that of any rows. With global
        latents it is the joint log p(x) of the training rows; other rows y are new to the model,
        and it is the predictive log p(y | training rows), of all together or, where that is
        unreliable, of each alone. `Evidence.kind` says which.

        Raises:
            ValueError: the predictive density needs the training rows, which cannot be loaded.
        """
        return posteriors.evidence(self, self.rows(x), num_particles, seed)

    @public_call
    @names_faults
    def to_arviz(
        self, x: DataSource, *, num_samples: Count = 1000, draws: Draws = "q", seed: Seed = 0
    ) -> Any:
        """ArviZ data: posterior, predictive, log-likelihood, prior, observed data; one chain.

        `draws="weighted"` adds importance weights, `draws="resampled"` resamples by them; see
        `ppl_lvm.posterior.arviz_export`.
        """
        from ppl_lvm.posterior.arviz_export import to_arviz

        batch = self.batch(x)
        predict.require_posterior(self.pair, *batch, what="to_arviz")
        options: dict[str, Any] = {"seed": seed, "columns": self.record["data"].get("columns")}
        if draws == "q" and "num_chains" in self.results:
            known, C = posteriors.thinned(self, num_samples)
            return to_arviz(self.pair, *batch, known=known, num_chains=C, **options)
        return to_arviz(self.pair, *batch, num_samples=num_samples, draws=draws, **options)

    @public_call
    def posterior(self, n: Count = 1000, *, seed: Seed = 0) -> dict[str, Tensor]:
        """Draws of the posterior of the global latents: site -> (n, …).

        Of a fit without gradient steps they are the method's draws, `pyro.deterministic` sites
        included. Of a guide that was trained they are its draws, resampled by importance weights
        where these are reliable (k̂ ≤ 0.7).

        Raises:
            ValueError: the model has no global latents, or more draws are asked than there are.
        """
        return posteriors.draws(self, n, seed)

    @public_call
    def summary(self, n: Count = 4000) -> "DataFrame":
        """Table of the posterior of the global latents, one row per value.

        Columns: mean, sd, quantiles, Monte Carlo error of the mean, effective draws and R̂; see
        `ppl_lvm.approximation.summary`. `run.results["verdict"]` says whether to trust it.
        """
        return posteriors.summary(self, n)

    @public_call
    @names_faults
    def verify(
        self, nuts: bool = True, *, draws: Count = 1000, warmup: Count = 1000, seed: Seed = 0
    ) -> "DataFrame":
        """Compare the posterior with Pyro's NUTS on the same model; print and return the table.

        One row per value: means and standard deviations of both, the difference of the means in
        standard deviations, the ratio of the standard deviations, the Monte Carlo errors of these,
        and "agrees", "differs" or "unknown"; see `ppl_lvm.approximation.verification`.

        Args:
            nuts: False compares with the chains of `fit`'s default method, from other starts.
            draws, warmup: of NUTS, one chain from a random start.

        Raises:
            ValueError: the model has parameters, discrete latents, or none outside the plate over
                rows.
        """
        return posteriors.verify(self, nuts, draws, warmup, seed)

    @public_call
    @names_faults
    def predict(self, x: DataSource, *, num_samples: Count = 1000, seed: Seed = 0) -> Prediction:
        """Posterior predictive draws of new rows, their means and intervals.

        Args:
            x: the model's arguments at the new rows; those that it observes may be left out.
            num_samples: draws of the global latents, each with one draw of the rows.
        """
        return posteriors.predict(self, x, num_samples, seed)

    @public_call
    @names_faults
    def diagnose(
        self: "Run",  # checked in `diagnose(run)`
        x: DataSource | None = None,
        *,
        held_out: DataSource | None = None,
        quantities: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        refits: Whole = 0,
        temperatures: Count = 100,
        seed: Seed = 0,
        say: Say | None = None,
    ) -> "Diagnosis":
        """Diagnose the fit: a table of values, verdicts and remedies.

        Args:
            x: the training rows (default: those of the fit, loaded by name or path where the run
                was, with the held-out rows). Rows with weights are repeated.
            held_out: rows that the fit has not seen.
            quantities: user-defined test quantities, name -> function of data sets (R, N, P)
                with one value each (R,).
            refits: fits to simulated data, which test the calibration of a guide that does not
                read the data.
            temperatures: of the annealing behind the sandwich bounds of log p(x).
            seed: of the diagnostics' random numbers.
            say: called as say(name, done, total) before each diagnostic.
        """
        if x is None:
            x, held_out = self.data()
        elif has_weights(self.record) and not (isinstance(x, Data) and x.weights is not None):
            raise ValueError(
                "x: the run weighted its training rows, these have no weights. Pass "
                "load_data(x, weights=...)."
            )
        x, held_out = (
            repeat_rows(d, "diagnose") if isinstance(d, Data) else d for d in (x, held_out)
        )
        from ppl_lvm.diagnostics import diagnosis  # 26 modules that a fit does not need
        from ppl_lvm.diagnostics.budget import MAX_ROWS

        return diagnosis.diagnose(
            self.pair,
            self.history,
            *few_rows(self.pair, self.rows(x), MAX_ROWS, seed),
            held_out=None
            if held_out is None
            else few_rows(self.pair, self.rows(held_out), MAX_ROWS, seed),
            restarts=diagnosis.eligible_restarts(self.restarts, self.trajectories),
            options=self.record["options"],
            columns=x.columns if isinstance(x, Data) else None,
            quantities=quantities,
            refits=refits,
            temperatures=temperatures,
            seed=seed,
            say=say,
        )

    def _only_code(self) -> str:
        names = sorted(predict.encode(self.pair, *self.example_rows))
        if len(names) != 1:
            raise ValueError(
                f"The model has the local latents {names}. Pass a dictionary, site -> codes."
            )
        return names[0]

    @public_call(runs_programs=False)
    def save(self, directory: str | Path) -> None:
        """Write the run to `directory`; see `ppl_lvm.runs.directory`."""
        from ppl_lvm.runs.directory import save_run  # which builds runs

        save_run(self, Path(directory))


diagnose = Run.diagnose
