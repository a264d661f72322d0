"""Run directories written by version 0.1 load in this version."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch

from ppl_lvm import fit_em
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models import GaussianMixture
from ppl_lvm.programs.exact_posterior import ExactPosterior
from ppl_lvm.programs.loading import MOVED, load_program
from ppl_lvm.runs.directory import load_run, read_record
from ppl_lvm.runs.record import upgrade_record, upgrade_tensors

pytestmark = pytest.mark.usefixtures("no_figures")

OLD_RUNS = Path(__file__).parent / "data/0.1.0"
OTHER_UNITS = "global_normal"  # its guide has latents in the data's units
OLD_RUN_NAMES = sorted({path.name for path in OLD_RUNS.iterdir()} - {OTHER_UNITS})


@pytest.mark.parametrize("name", OLD_RUN_NAMES)
def test_load_run_reads_runs_written_by_version_0_1(name: str) -> None:
    run = load_run(OLD_RUNS / name)
    assert run.record["num_restarts"] == len(run.restarts) == len(run.trajectories)
    rows = run.example_rows[0]
    evidence = run.log_evidence(rows, run.results["num_particles"], seed=run.results["seed"])
    assert evidence.value == pytest.approx(run.results["log_evidence"], abs=1e-5)
    assert run.sample(3)["x"].shape == (3, 2)


def test_load_run_refuses_a_guide_of_version_0_1_in_other_units() -> None:
    with pytest.raises(ValueError, match=r"written by ppl_lvm 0\.1\.0.*means in other units"):
        load_run(OLD_RUNS / OTHER_UNITS)


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_moved_addresses_name_programs_of_this_version(old: str, new: str) -> None:
    assert load_program(new).__name__ == new.rpartition(":")[2]
    assert (load_program(new) is ExactPosterior) == old.endswith("ExactPosterior")


def test_load_run_names_the_version_that_wrote_a_run_it_cannot_load(tmp_path: Path) -> None:
    shutil.copytree(OLD_RUNS / "svi", tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    record["model"]["address"] = "ppl_lvm.models:NoSuchModel"
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"written by ppl_lvm 0\.1\.0.*NoSuchModel.*pass model="):
        load_run(tmp_path / "run")
    run = load_run(tmp_path / "run", model=GaussianMixture(components=2))
    assert run.results["bound"] == record["results"]["bound"]


def test_resume_loads_a_finished_run_of_version_0_1_and_refuses_an_unfinished_one(
    tmp_path: Path,
) -> None:
    shutil.copytree(OLD_RUNS / "svi", tmp_path / "run")
    x = load_run(tmp_path / "run").example_rows[0]
    resume = functools.partial(
        fit,
        GaussianMixture,
        None,
        x,
        settings={"components": 2},
        num_steps=3,
        restarts=2,
        directory=tmp_path / "run",
        resume=True,
    )
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert resume().results["bound"] == record["results"]["bound"]
    record["results"] = None
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"unfinished run of ppl_lvm 0\.1\.0"):
        resume()


def test_runs_of_this_version_record_their_layout(tmp_path: Path) -> None:
    x = torch.randn(20, 2)
    fit(GaussianMixture(2), None, x, num_steps=1, directory=tmp_path / "svi")
    fit_em(GaussianMixture(2), x, max_iterations=1, directory=tmp_path / "em")
    for name in ("svi", "em"):
        record = read_record(tmp_path / name)
        assert record["layout"] == 2
        assert set(record["versions"]) == {"ppl_lvm", "torch", "pyro-ppl", "numpy"}


def test_upgrade_record_renames_settings_of_bundled_programs_only() -> None:
    record = json.loads((OLD_RUNS / "svi/run.json").read_text())
    record["model"] |= {"address": "ppl_lvm.models:RandomEffects", "settings": {"centred": True}}
    record["guide"] |= {"address": "guide.py:Guide", "settings": {"centred": True}}
    upgraded = upgrade_record(record)
    assert upgraded["model"]["settings"] == {"centered": True}
    assert upgraded["guide"]["settings"] == {"centred": True}


def test_upgrade_tensors_renames_the_state_of_bundled_programs_only() -> None:
    record = json.loads((OLD_RUNS / "svi/run.json").read_text())
    record["model"]["address"] = "model.py:Model"
    names = ("state/model/holes", "state/guide/say.0.weight", "template/0")
    upgraded = upgrade_tensors(record, dict.fromkeys(names, torch.zeros(())))
    assert set(upgraded) == {"state/model/holes", "state/guide/heads.0.weight", "template/0"}
