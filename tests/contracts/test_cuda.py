"""Equal steps at every level on a CUDA device."""

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.compiler.backend import cuda_graph
from ppl_lvm.fitting.svi import fit
from ppl_lvm.training.loop import Training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Factor(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, 3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", Normal(z * self.w, 1.0).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.encoder(x), 0.7).to_event(1))


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).cuda()


def factors(engine: str, **options: Any) -> Any:
    pyro.set_rng_seed(0)
    model, guide = Factor().cuda(), Guide().cuda()
    options = {"num_steps": 50, "batch_size": 16, "clip_norm": 1.0, **options}
    return fit(model, guide, data(64, 3), engine=engine, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", ["captured", "compiled"])
@pytest.mark.parametrize("options", [{}, {"kl_annealing": 30, "schedule": "StepLR(step_size=20)"}])
def test_levels_agree_on_cuda(level: str, options: dict[str, Any]) -> None:
    expected, run = factors("eager", **options), factors(level, **options)
    assert run.results["engine"] == level
    assert run.history["bound"] == pytest.approx(expected.history["bound"], rel=1e-4)


@pytest.mark.parametrize("steps_per_call", [1, 10])
def test_compiled_step_is_one_cuda_graph_launch(
    steps_per_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = []
    recorded = cuda_graph._capture

    def counting(*arguments: Any) -> Any:
        replay, losses = recorded(*arguments)

        def launch() -> None:
            launches.append(1)
            replay()

        return launch, losses

    monkeypatch.setattr(cuda_graph, "_capture", counting)
    options: dict[str, Any] = {"kl_annealing": 30, "steps_per_call": steps_per_call}
    run = factors("compiled", **options)
    assert len(launches) >= 48  # of 50 steps; the first may run the program
    monkeypatch.setattr(cuda_graph, "_DEVICE", "no device")
    assert run.history["bound"] == pytest.approx(
        factors("compiled", **options).history["bound"], rel=1e-4
    )


@pytest.mark.parametrize("level", ["captured", "compiled"])
@pytest.mark.parametrize("name", ["VAE", "GaussianMixture", "HiddenMarkovModel"])
def test_levels_agree_for_bundled_models_on_cuda(name: str, level: str) -> None:
    x = data(32, 12, 2) if name == "HiddenMarkovModel" else data(64, 4)
    if name == "VAE":
        x = (x > 0).float()

    def bounds(engine: str) -> list[float]:
        options: dict[str, Any] = {"engine": engine, "num_steps": 20, "progress": False}
        run = fit(f"ppl_lvm.models:{name}", None, x, **options)
        model: Any = run.model
        assert {p.device for p in model.parameters()} == {x.device}
        history: list[float] = run.history["bound"]
        return history

    assert bounds(level) == pytest.approx(bounds("eager"), rel=1e-4)


def test_interrupted_compiled_run_resumes_on_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, step = factors("compiled"), Training._step

    def until_30(training: Training) -> float:
        if training.step_number == 30:
            raise KeyboardInterrupt
        return step(training)

    options: dict[str, Any] = {"directory": tmp_path / "run", "checkpoint_seconds": 0}
    monkeypatch.setattr(Training, "_step", until_30)
    with pytest.raises(KeyboardInterrupt):
        factors("compiled", **options)
    monkeypatch.undo()
    resumed = factors("compiled", **options, resume=True)
    assert resumed.history["bound"] == pytest.approx(complete.history["bound"], rel=1e-4)
