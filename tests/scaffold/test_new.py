"""Files that `ppl-lvm new` writes."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ppl_lvm import load_run
from ppl_lvm.cli import app
from ppl_lvm.scaffold.new import bundled_models, new

# Named in the documents; other models may be rejected with a reason.
STAND_ALONE = {"gmm", "vae", "bayesian_gmm", "ppca", "factor_analysis"}

FindTests = Callable[[str], list[Callable[[], None]]]


@pytest.fixture
def tests_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FindTests:
    """name -> the test functions written for it in the temporary folder."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def find(name: str) -> list[Callable[[], None]]:
        module = importlib.import_module(f"test_{name}")
        assert Path(str(module.__file__)).parent == tmp_path
        return [value for key, value in vars(module).items() if key.startswith("test_")]

    return find


@pytest.mark.slow
def test_template_passes_its_tests_and_is_fitted_by_its_address(
    tmp_path: Path, tests_of: FindTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = CliRunner().invoke(app, ["new", "mymodel"]).stdout.split()
    assert output == ["mymodel.py", "mymodel_guide.py", "test_mymodel.py", "README-mymodel.md"]
    for test in tests_of("mymodel"):
        test()
    words = ["--data", "iris", "--num-steps", "5", "--guide", "mymodel_guide.py:MyModelGuide"]
    done = CliRunner().invoke(app, ["fit", "mymodel.py:MyModel", *words, "--directory", "run"])
    assert done.exit_code == 0, done.output
    assert load_run("run").results["steps"] == 5


@pytest.mark.slow
def test_every_command_of_the_readme_runs(
    tmp_path: Path, tests_of: FindTests, monkeypatch: pytest.MonkeyPatch
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
        done = CliRunner().invoke(app, line.split()[1:])
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", [None, "gmm"])
def test_new_files_import_public_names_only(name: str | None, tmp_path: Path) -> None:
    paths = new("mine", name, tmp_path)
    text = "".join(path.read_text() for path in paths[1:3])
    modules = set(re.findall(r"^(?:from|import) (ppl_lvm[\w.]*)", text, re.MULTILINE))
    assert modules <= {"ppl_lvm", "ppl_lvm.nn", "ppl_lvm.authoring"}


@pytest.mark.slow
@pytest.mark.parametrize("like", sorted(bundled_models()))
def test_copy_of_a_bundled_model_passes_its_tests_or_is_rejected(
    like: str, tmp_path: Path, tests_of: FindTests
) -> None:
    name = f"my_{like}"
    rejection = ""
    try:
        new(name, like, tmp_path)
    except ValueError as error:
        rejection = str(error)
    if rejection:
        assert like not in STAND_ALONE, rejection
        assert f"--like {like} does not stand alone" in rejection
        assert list(tmp_path.iterdir()) == []
        return
    for test in tests_of(name):
        test()
    module, _, original = bundled_models()[like].partition(":")
    source = Path(str(importlib.import_module(module).__file__)).read_text()
    copied = (tmp_path / f"{name}.py").read_text()
    assert re.sub(r"\bMy\w+", original, copied) == source


def test_new_accepts_a_class_name_and_a_unique_part_of_a_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "class Mine(" in new("mine", "PPCA", tmp_path)[0].read_text()
    addresses = {"linear_map": "ppl_lvm.models:PPCA", "other_map": "ppl_lvm.models:VAE"}
    monkeypatch.setattr("ppl_lvm.scaffold.new.bundled_models", lambda: addresses)
    assert "class Ours(" in new("ours", "linear", tmp_path)[0].read_text()
    with pytest.raises(ValueError, match=r"model 'map'\. Available: linear_map, other_map"):
        new("yours", "map", tmp_path)


def test_new_copies_a_model_of_the_user(tmp_path: Path, tests_of: FindTests) -> None:
    new("first", directory=tmp_path)
    paths = new("second", f"{tmp_path}/first.py:First", tmp_path)
    assert paths[0].read_text() == (tmp_path / "first.py").read_text().replace("First", "Second")
    tests_of("second")[0]()


def test_new_writes_nothing_if_one_of_its_files_exists(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("mine")
    with pytest.raises(ValueError, match=r"test_mine.py exists and is not overwritten"):
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
        ("torch", None, "A module torch exists"),
        ("mine", "cholesky", r"models.parts\S*cholesky holds no model.*Choose from .*gmm"),
        ("mine", "gmn", r"Unknown model 'gmn'. Available: .*gmm"),
        ("mine", "ppl_lvm.guides:auto_guide", "is a class, and this is not one"),
        ("mine", "collections:Counter", "does not stand alone"),
    ],
)
def test_new_rejects_invalid_names_and_models(
    name: str, like: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        new(name, like, tmp_path)
    assert list(tmp_path.iterdir()) == []
