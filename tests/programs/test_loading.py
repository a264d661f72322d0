"""Addresses, calls and settings: found, or an error that says what is on offer."""

from pathlib import Path
from typing import Any

import pytest
from pyro.infer import Trace_ELBO

from ppl_lvm.core.call_syntax import build, parse_call, parse_settings, settings_of
from ppl_lvm.programs.loading import address_of, load_program

SOURCE = """
import helper_beside
class Topic:
    def __init__(self, words=3): self.words = words
def guide(x): return helper_beside.VALUE
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "helper_beside.py").write_text("VALUE = 7\n")
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_a_file_is_loaded_once_and_may_import_its_neighbors(program: Path) -> None:
    topic = load_program(f"{program}:Topic")
    assert topic is load_program(f"{program}:Topic")
    assert load_program(f"{program}:guide")(None) == 7


def test_address_of_leads_back(program: Path) -> None:
    topic = load_program(f"{program}:Topic")
    address = address_of(topic)
    assert address is not None
    assert load_program(address) is topic
    assert address_of(Trace_ELBO) == "pyro.infer.trace_elbo:Trace_ELBO"


def test_a_class_made_in_a_function_has_no_address() -> None:
    class Inner:
        pass

    assert address_of(Inner) is None


def test_a_wrong_name_lists_what_is_there(program: Path) -> None:
    with pytest.raises(ValueError, match=r"has no 'Topics'; it offers Topic, guide"):
        load_program(f"{program}:Topics")


def test_a_wrong_file_suggests_the_near_one(program: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*mine\.py"):
        load_program(f"{program.parent}/mime.py:Topic")


@pytest.mark.parametrize("text", ["models/vae.py", "VAE", ":VAE", "models/vae.py:"])
def test_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        load_program(text)


def test_a_missing_module_is_told_from_a_missing_import(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"For a file, write its path with \.py"):
        load_program("no_such_module:Name")
    broken = tmp_path / "broken.py"
    broken.write_text("import not_installed_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        load_program(f"{broken}:Name")


@pytest.mark.parametrize(
    "text", ["Adam(0.1)", "Adam(lr=", "a.b", "Adam(lr=x)", "Adam(**{'lr': 1})", "1"]
)
def test_a_call_takes_literal_keywords_only(text: str) -> None:
    with pytest.raises(ValueError, match="literal keyword arguments"):
        parse_call(text)


def test_settings_are_literals_or_text() -> None:
    settings = parse_settings(["components=3", "likelihood=bernoulli", "hidden=(8, 4)"])
    assert settings == {"components": 3, "likelihood": "bernoulli", "hidden": (8, 4)}
    with pytest.raises(ValueError, match="components"):
        parse_settings(["components"])


def test_a_misspelt_setting_is_named() -> None:
    with pytest.raises(ValueError, match=r"Did you mean num_particles\?"):
        build(Trace_ELBO, settings={"num_particle": 3}, what="Trace_ELBO")


def test_settings_are_read_back_or_not_at_all(program: Path) -> None:
    topic = load_program(f"{program}:Topic")
    assert settings_of(topic(words=5)) == {"words": 5}
    changed = topic()
    del changed.words
    assert settings_of(changed) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": "three"}, "mine takes components as a whole number, got 'three'"),
        ({"components": 2.5}, "components as a whole number, got 2.5"),
        ({"components": None}, "components as a whole number, got None"),
        ({"observed": "x"}, "observed as a whole number or None, got 'x'"),
        ({"floor": "low"}, "floor as a number, got 'low'"),
        ({"hidden": 128}, r"hidden as a tuple, as \(128,\), got 128"),
        ({"name": 3}, "name as text, got 3"),
    ],
)
def test_a_setting_of_another_kind_is_named(settings: dict[str, Any], message: str) -> None:
    class Mine:
        def __init__(
            self,
            components: int = 3,
            observed: int | None = None,
            floor: float = 1e-6,
            hidden: tuple[int, ...] = (128,),
            name: str = "",
            other: Any = None,
        ) -> None:
            self.got = (components, observed, floor, hidden, name, other)

    with pytest.raises(ValueError, match=message):
        build(Mine, settings=settings, what="mine")
    good = {"components": 2, "observed": None, "floor": 1, "hidden": [3], "other": "any"}
    assert build(Mine, settings=good, what="mine").got == (2, None, 1, [3], "", "any")
