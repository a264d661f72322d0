"""What `new` writes runs at once, whatever it started from, and nothing is overwritten."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ppl_lvm.cli import app
from ppl_lvm.runs.directory import load_run
from ppl_lvm.scaffold.new import new, offered

# Those that the documents name; others may be refused, by name.
STAND_ALONE = {"gmm", "vae", "bayesian_gmm", "ppca", "factor_analysis"}


@pytest.fixture
def tests_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], list[Callable[[], None]]]]:
    """name -> the test functions written for it in the temporary folder."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def find(name: str) -> list[Callable[[], None]]:
        written = importlib.import_module(f"test_{name}")
        assert Path(str(written.__file__)).parent == tmp_path
        return [value for key, value in vars(written).items() if key.startswith("test_")]

    yield find
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_the_template_passes_its_test_and_is_fitted_by_its_address(
    tmp_path: Path, tests_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, ["new", "mymodel"]).stdout.split()
    assert said == ["mymodel.py", "mymodel_guide.py", "test_mymodel.py", "README-mymodel.md"]
    for test in tests_of("mymodel"):
        test()
    words = ["--data", "iris", "--num-steps", "5", "--guide", "mymodel_guide.py:MyModelGuide"]
    done = CliRunner().invoke(app, ["fit", "mymodel.py:MyModel", *words, "--directory", "run"])
    assert done.exit_code == 0, done.output
    assert load_run("run").results["steps"] == 5


@pytest.mark.slow
def test_every_line_of_the_readme_runs(
    tmp_path: Path, tests_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    new("topics", directory=tmp_path)
    lines = (tmp_path / "README-topics.md").read_text().splitlines()
    assert len(lines) <= 10
    test, show, check, fit, diagnose = [line.strip() for line in lines if line[:4] == "    "]
    assert test == "pytest test_topics.py"
    for each in tests_of("topics"):
        each()
    monkeypatch.chdir(tmp_path)
    for line in [show, check, f"{fit} --num-steps 50", f"{diagnose} --temperatures 5"]:
        said = CliRunner().invoke(app, line.split()[1:])
        assert said.exit_code == 0, said.output


@pytest.mark.parametrize("like", sorted(offered()))
def test_a_copy_of_ours_passes_its_test(like: str, tmp_path: Path, tests_of: Any) -> None:
    name = f"my_{like}"
    refusal = ""
    try:
        new(name, like, tmp_path)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert like not in STAND_ALONE, refusal
        assert f"--like {like} does not stand alone" in refusal
        assert list(tmp_path.iterdir()) == []
        return
    for test in tests_of(name):
        test()
    module, _, original = offered()[like].partition(":")
    source = Path(str(importlib.import_module(module).__file__)).read_text()
    copied = (tmp_path / f"{name}.py").read_text()
    assert re.sub(r"\bMy\w+", original, copied) == source


def test_a_class_or_a_part_of_a_files_name_that_no_other_has_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "class Mine(" in new("mine", "PPCA", tmp_path)[0].read_text()
    files = {"linear_map": "ppl_lvm.models:PPCA", "other_map": "ppl_lvm.models:VAE"}
    monkeypatch.setattr("ppl_lvm.scaffold.new.offered", lambda: files)
    assert "class Ours(" in new("ours", "linear", tmp_path)[0].read_text()
    with pytest.raises(ValueError, match="no model 'map'; choose from linear_map, other_map"):
        new("yours", "map", tmp_path)


def test_a_model_of_the_users_can_be_copied_too(tmp_path: Path, tests_of: Any) -> None:
    new("first", directory=tmp_path)
    paths = new("second", f"{tmp_path}/first.py:First", tmp_path)
    assert paths[0].read_text() == (tmp_path / "first.py").read_text().replace("First", "Second")
    tests_of("second")[0]()


def test_nothing_is_overwritten_and_then_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("mine")
    with pytest.raises(ValueError, match=r"test_mine.py is there already and is not overwritten"):
        new("mine", directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["test_mine.py"]
    assert (tmp_path / "test_mine.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "like", "message"),
    [
        ("MyModel", None, r"'MyModel' cannot be the name of a module.*: my_model"),
        ("my-model", None, "my_model"),
        ("2b", None, "lower-case letters"),
        ("class", None, "cannot be the name"),
        ("torch", None, "There is a module torch already"),
        ("mine", "mixture_em", r"models/parts/mixture_em.py holds no model.*Choose from .*gmm"),
        ("mine", "gmn", r"There is no model 'gmn'; choose from .*gmm"),
        ("mine", "ppl_lvm.guides:auto_guide", "is a class, this is no class"),
        ("mine", "collections:Counter", "does not stand alone"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(
    name: str, like: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        new(name, like, tmp_path)
    assert list(tmp_path.iterdir()) == []
