"""Demo on real data.

A Gaussian mixture on Iris, and a VAE on the handwritten digits by three objectives. Each is
fitted, compared with a known result, and drawn.
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from sklearn.metrics import adjusted_rand_score

from ppl_lvm import Run, fit, load_data
from ppl_lvm.core.storage import jsonable

console = Console(highlight=False)

MIXTURE = "ppl_lvm.models.gmm:GaussianMixture"
VAE = "ppl_lvm.models.vae:VAE"
AMORTIZED = "ppl_lvm.guides.amortized:AmortizedNormal"
IRIS_OPTIMUM = -1.2012  # nats per flower: three full covariances, the known optimum


def main(directory: Path, *, seed: int = 0) -> dict[str, Any]:
    """Run the demo; runs and figures go to `directory`, which must be empty or absent.

    Returns the results of each run by its directory.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty; remove it or choose another with --directory.")
    runs = [iris(directory / "iris", seed), *digits(directory / "digits", seed).values()]
    console.print(f"\nRuns and pictures: {directory}")
    return {str(run.directory): jsonable(run.results) for run in runs}


def iris(directory: Path, seed: int) -> Run:
    """Fit three components with full covariances, the best of ten restarts."""
    console.print("[bold]A Gaussian mixture on Iris[/bold] (150 flowers, 4 measurements)")
    data = load_data("iris")
    run = fit(
        MIXTURE,
        None,
        data,
        settings={"components": 3},
        num_steps=500,
        restarts=10,
        seed=seed,
        directory=directory,
    )
    bounds = [r["bound"] for r in run.restarts]
    species = run.encode(data)["z"].argmax(1)
    rand = adjusted_rand_score(data.labels, species)
    _row("log-likelihood", f"{run.results['bound']:.4f} nats per flower, the best of 10 restarts")
    _row("known optimum", f"{IRIS_OPTIMUM:.4f}")
    _row("all restarts", f"{min(bounds):.4f} to {max(bounds):.4f}")
    _row("collapsed restarts", str(sum(r["degenerate"] is not None for r in run.restarts)))
    _row("adjusted Rand index", f"{rand:.3f} against the species (1 is perfect, 0 is chance)")
    _pictures(run)
    return run


def digits(directory: Path, seed: int) -> dict[str, Run]:
    """Fit a VAE to binarized digits by the ELBO and by IWAE, evaluated on held-out digits."""
    console.print(
        "\n[bold]A variational autoencoder on the digits[/bold] (8 x 8 pixels, black or white; "
        "1,500 for training, 297 held out)"
    )
    data = load_data("digits(binarize=8)")
    _, held_out = data.split(297, seed)  # as fit splits
    runs = {}
    for objective in ("ELBO", "IWAE(num_particles=5)", "IWAE(num_particles=50)"):
        runs[objective] = run = fit(
            VAE,
            AMORTIZED,
            data,
            objective=objective,
            optimizer="Adam(lr=0.001)",
            num_epochs=150,
            accuracy=0,
            batch_size=128,
            validation=297,
            seed=seed,
            directory=directory / objective.partition("(")[0].lower() / _particles(objective),
        )
        evidence = run.log_evidence(held_out, num_particles=5000, seed=seed)
        _row(objective, f"held-out log p(x) {evidence}, {run.results['seconds']:.0f} s")
    _pictures(run)
    return runs


def _particles(objective: str) -> str:
    return objective.partition("=")[2].rstrip(")") or "1"


def _row(name: str, value: Any) -> None:
    console.print(f"  {name:<24}{value}", soft_wrap=True)


def _pictures(run: Run) -> None:
    assert run.directory is not None
    for picture in sorted((run.directory / "pictures").glob("*.png")):
        console.print(f"  {picture}", soft_wrap=True)
