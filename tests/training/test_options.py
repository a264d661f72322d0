"""Declared options, and functions and defaults made from them."""

import inspect
from typing import Any

import pytest

import ppl_lvm
from ppl_lvm.training.option_signatures import takes_options
from ppl_lvm.training.options import FitOptions, declared

FRONT_ENDS = [name for name in ppl_lvm.__all__ if name.split("_")[0] == "fit"]


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_signature_and_docstring_of_a_front_end_come_from_its_options(name: str) -> None:
    function: Any = getattr(ppl_lvm, name)
    parameters = inspect.signature(function).parameters
    for field in declared(function.options):
        assert parameters[field.name].default == field.default
        assert field.metadata["help"].endswith(".")
        assert f"\n    {field.name}: {field.metadata['help'][:20]}" in function.__doc__
    keywords = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert keywords == {field.name for field in declared(function.options)}


def test_front_ends_are_the_four_fits() -> None:
    assert sorted(FRONT_ENDS) == ["fit", "fit_adversarial", "fit_em", "fit_mcem"]


@takes_options(FitOptions)
def _seed(model: Any, data: Any, options: FitOptions) -> int:
    """The seed."""
    return options.seed


def test_options_are_keywords_with_their_defaults() -> None:
    assert _seed(None, None) == 0
    assert _seed(None, None, seed=3) == 3


def test_misspelled_option_raises_with_a_suggestion() -> None:
    call: Any = _seed
    with pytest.raises(TypeError, match=r"_seed: unknown argument 'num_step'. Did you mean num_s"):
        call(None, None, num_step=3)


def test_settled_options_count_epochs_in_steps() -> None:
    options = FitOptions(num_epochs=3, batch_size=40).settle(100, None)
    assert (options.num_steps, options.batch_size, options.validate_every) == (9, 40, 100)
    assert FitOptions().settle(100, 25).batch_size == 25  # of a DataLoader
    assert FitOptions().settle(100, None).num_steps == 10_000
    assert FitOptions(accuracy=0).settle(100, None).num_steps == 2000
