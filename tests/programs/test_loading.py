"""Addresses, calls and settings, and errors that list the choices."""

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


def test_load_program_loads_a_file_once_with_imports_from_its_folder(program: Path) -> None:
    topic = load_program(f"{program}:Topic")
    assert topic is load_program(f"{program}:Topic")
    assert load_program(f"{program}:guide")(None) == 7


def test_address_of_is_the_inverse_of_load_program(program: Path) -> None:
    topic = load_program(f"{program}:Topic")
    address = address_of(topic)
    assert address is not None
    assert load_program(address) is topic
    assert address_of(Trace_ELBO) == "pyro.infer.trace_elbo:Trace_ELBO"


def test_class_defined_in_a_function_has_no_address() -> None:
    class Inner:
        pass

    assert address_of(Inner) is None


def test_load_program_lists_the_names_of_a_module(program: Path) -> None:
    with pytest.raises(ValueError, match=r"it has no 'Topics'. Available: Topic, guide"):
        load_program(f"{program}:Topics")


def test_load_program_suggests_a_similar_file(program: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*mine\.py"):
        load_program(f"{program.parent}/mime.py:Topic")


@pytest.mark.parametrize("text", ["models/vae.py", "VAE", ":VAE", "models/vae.py:"])
def test_load_program_refuses_text_that_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        load_program(text)


def test_load_program_distinguishes_a_missing_module_from_a_missing_import(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"For a file, write its path with \.py"):
        load_program("no_such_module:Name")
    broken = tmp_path / "broken.py"
    broken.write_text("import not_installed_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        load_program(f"{broken}:Name")


@pytest.mark.parametrize(
    "text", ["Adam(0.1)", "Adam(lr=", "a.b", "Adam(lr=x)", "Adam(**{'lr': 1})", "1"]
)
def test_parse_call_accepts_literal_keywords_only(text: str) -> None:
    with pytest.raises(ValueError, match="literal keyword arguments"):
        parse_call(text)


def test_settings_are_literals_or_text() -> None:
    settings = parse_settings(["components=3", "likelihood=bernoulli", "hidden=(8, 4)"])
    assert settings == {"components": 3, "likelihood": "bernoulli", "hidden": (8, 4)}
    with pytest.raises(ValueError, match="components"):
        parse_settings(["components"])


def test_build_names_a_misspelled_setting() -> None:
    with pytest.raises(ValueError, match=r"Did you mean num_particles\?"):
        build(Trace_ELBO, settings={"num_particle": 3}, what="Trace_ELBO")


def test_settings_of_reads_all_settings_or_none(program: Path) -> None:
    topic = load_program(f"{program}:Topic")
    assert settings_of(topic(words=5)) == {"words": 5}
    changed = topic()
    del changed.words
    assert settings_of(changed) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": "three"}, "mine: components='three' is a str. Pass a whole number"),
        ({"components": 2.5}, "components=2.5 is a float. Pass a whole number"),
        ({"components": None}, "components=None is not accepted. Pass a whole number"),
        ({"observed": "x"}, "observed='x' is a str. Pass a whole number or None"),
        ({"floor": "low"}, "floor='low' is a str. Pass a finite number"),
        ({"hidden": 128}, r"hidden=128 is an int. Pass a tuple"),
        ({"name": 3}, "name=3 is an int. Pass text"),
    ],
)
def test_build_names_a_setting_of_another_type(settings: dict[str, Any], message: str) -> None:
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
