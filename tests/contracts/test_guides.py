"""What every guide for a VAE's codes can do: by address, fitted, kept, loaded, exported."""

from pathlib import Path

import pytest
import torch

from ppl_lvm import guides
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models import VAE
from ppl_lvm.runs.directory import load_run

SERVING = (
    "AmortizedNormal",
    "AmortizedMultivariateNormal",
    "AmortizedLowRank",
    "AmortizedFlow",
    "AmortizedJoint",
    "AmortizedJointNormal",
    "SemiAmortized",
    "LocalNormal",
    "auto_guide",
)


@pytest.mark.parametrize("name", SERVING)
def test_a_run_by_address_comes_back_and_says_the_same(name: str, tmp_path: Path) -> None:
    x = torch.rand(40, 6).round()
    run = fit(
        VAE,
        f"ppl_lvm.guides:{name}",
        x,
        num_steps=4,
        batch_size=16,
        validation=8,
        engine="eager",
        settings={"latent": 2, "hidden": (8,)},
        progress=False,
    )
    run.save(tmp_path)
    loaded = load_run(tmp_path)
    codes = []
    for one in (run, loaded):
        torch.manual_seed(0)  # where the mean is that of draws
        codes.append(one.encode(x[:5])["z"])
    torch.testing.assert_close(*codes)
    assert loaded.sample(3, seed=0)["x"].shape == (3, 6)
    evidence = loaded.log_evidence(x[:5], num_particles=10)
    assert evidence.value == run.log_evidence(x[:5], num_particles=10).value
    assert "posterior" in loaded.to_arviz(x[:5], num_samples=3)
    assert run.results["held_out"] < 0


def test_every_guide_says_which_models_it_does_not_serve() -> None:
    """A model without latents is served by none but `auto_guide`, which says that it is empty."""

    def nothing(x: torch.Tensor) -> None:
        del x

    for name in SERVING[:-1]:
        with pytest.raises(ValueError, match=f"{name}: there is no .*latent to serve.*auto_guide"):
            getattr(guides, name)(nothing, torch.rand(4, 6))
    assert "empty" in str(guides.auto_guide(nothing, torch.rand(4, 6)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("AmortizedFlow", {"steps": 1}),
        ("AmortizedJointNormal", {}),
        ("SemiAmortized", {"steps": 1}),
    ],
)
def test_captured_steps_are_the_eager_ones(name: str, settings: dict[str, int]) -> None:
    x = torch.rand(30, 6).round()
    runs = [
        fit(
            VAE,
            f"ppl_lvm.guides:{name}",
            x,
            num_steps=12,
            engine=engine,
            settings={"latent": 2, "hidden": (8,)},
            guide_settings=settings,
            progress=False,
        )
        for engine in ("eager", "captured")
    ]
    assert runs[1].results["engine"] == "captured"
    bounds = [torch.tensor(run.history["bound"]) for run in runs]
    torch.testing.assert_close(*bounds, atol=1e-4, rtol=1e-4)
