"""Runs: save and load, sample, encode, decode, load data."""

import math
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models import FactorAnalysis, HiddenMarkovModel
from ppl_lvm.runs.directory import load_run
from small_programs import Factor, FactorGuide, factor_data

pytestmark = pytest.mark.usefixtures("no_figures")


def test_load_run_restores_a_saved_run(tmp_path: Path) -> None:
    x = factor_data()
    run = fit(Factor(), FactorGuide(), x, num_steps=20, directory=tmp_path / "r")
    loaded = load_run(tmp_path / "r", model=Factor(), guide=FactorGuide())
    assert loaded.history == run.history
    assert all(torch.equal(v, loaded.parameters()[n]) for n, v in run.parameters().items())
    assert torch.equal(loaded.encode(x)["z"], run.encode(x)["z"])
    assert torch.equal(loaded.sample(5, seed=1)["x"], run.sample(5, seed=1)["x"])
    assert loaded.results == run.results
    again = load_run(tmp_path / "r")  # from the addresses of the classes
    assert torch.equal(again.encode(x)["z"], run.encode(x)["z"])
    with pytest.raises(ValueError, match="holds a run already"):
        fit(Factor(), FactorGuide(), x, num_steps=20, directory=tmp_path / "r")


def test_load_run_rejects_a_model_with_other_parameters(tmp_path: Path) -> None:
    fit(Factor(), FactorGuide(), factor_data(), num_steps=2, directory=tmp_path / "r")
    larger = Factor()
    larger.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="model/extra missing, unknown or of another shape"):
        load_run(tmp_path / "r", model=larger, guide=FactorGuide())


def test_run_sample_encode_and_decode_have_the_shapes_of_the_data() -> None:
    x = factor_data(30)
    run = fit(Factor(), FactorGuide(), x, num_steps=5)
    draws = run.sample(7)
    assert draws["x"].shape == (7, 3)
    assert draws["z"].shape == (7, 1)
    codes = run.encode(x)["z"]
    assert codes.shape == (30, 1)
    p = run.parameters()
    assert torch.allclose(run.decode(codes)["x"], codes * p["w"] + p["b"])
    assert torch.allclose(run.decode({"z": codes})["x"], run.decode(codes)["x"])
    with pytest.raises(ValueError, match="no site 'y'"):
        run.decode({"y": codes})
    assert math.isfinite(run.log_evidence(x, 10).value)


def test_run_data_loads_and_splits_named_data_as_for_the_fit(tmp_path: Path) -> None:
    def model(x: Tensor) -> None:
        m = pyro.param("m", torch.zeros(4))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(m, 1.0).to_event(1), obs=x)

    run = fit(model, lambda x: None, "iris", validation=30, num_steps=2, seed=3)
    train, held_out = run.data()
    assert (len(train), len(held_out or ())) == (120, 30)
    run.training_data = None  # as in a run that was loaded
    held_out_again = run.data()[1]
    assert held_out is not None
    assert held_out_again is not None
    assert torch.equal(held_out.tensors[0], held_out_again.tensors[0])
    other = fit(model, lambda x: None, torch.zeros(5, 4), num_steps=1)
    assert torch.equal(other.data()[0].tensors[0], torch.zeros(5, 4))
    other.training_data = None  # as in a run that was loaded
    with pytest.raises(ValueError, match="no name or path"):
        other.data()


@pytest.mark.slow
def test_run_reads_other_data_as_its_training_data(tmp_path: Path) -> None:
    x = torch.randn(20, 5)
    x[::4, 2] = torch.nan
    np.save(tmp_path / "x.npy", x.numpy())
    sequences = load_data(tmp_path / "x.npy", missing="keep")
    in_memory = load_data(x.numpy(), missing="keep")
    for data in (sequences, in_memory):
        run = fit(HiddenMarkovModel(2), None, data, num_steps=2, engine="eager")
        values = {run.log_evidence(other).value for other in (x, x.numpy(), in_memory)}
        assert values == {run.log_evidence(str(tmp_path / "x.npy")).value}
    complete = fit(HiddenMarkovModel(2), None, x.nan_to_num(), num_steps=2, engine="eager")
    with pytest.raises(ValueError, match="the value is missing"):
        complete.log_evidence(x)

    for name in ("a", "b"):
        rows = "\n".join(f"{i},{i % 7},{i % 3}" for i in range(20))
        (tmp_path / f"{name}.csv").write_text(f"number,p,q\n{rows}\n")
    table = load_data(tmp_path / "a.csv", columns=["p", "q"])
    run = fit(FactorAnalysis(1), None, table, num_steps=2, engine="eager")
    assert run.log_evidence(tmp_path / "b.csv").value == run.log_evidence(table).value
