"""Tracebacks of errors that leave the package."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor

from ppl_lvm import check, compare, fit, fit_adversarial, fit_em, fit_mcem, load_data, load_run
from ppl_lvm.core.tracebacks import trims_traceback

X = torch.zeros(4, 2)


def normal(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(pyro.param("m", torch.zeros(2)), 1.0).to_event(1), obs=x)


def sums_columns(x: Tensor) -> None:
    x @ torch.ones(3, 1)


def no_guide(x: Tensor) -> None:
    pass


def evaluates(x: Any) -> None:
    fit(normal, no_guide, X, num_steps=1, progress=False).log_evidence(x)


@pytest.mark.parametrize(
    "fails",
    [
        lambda: load_data("absent.csv"),
        lambda: load_data([1, 2]),
        lambda: load_run("absent"),
        lambda: fit(normal, no_guide, X, num_steps=0),
        lambda: fit(normal, no_guide, "absent.csv"),
        lambda: fit(sums_columns, no_guide, X),
        lambda: fit(sums_columns, None, X),
        lambda: fit(normal, no_guide),  # type: ignore[call-arg]
        lambda: fit(normal, no_guide, X, steps=3),  # type: ignore[call-arg]
        lambda: fit_em(normal, X),
        lambda: fit_mcem(normal, X),
        lambda: fit_adversarial(normal, X),
        lambda: compare([]),
        lambda: evaluates("absent.csv"),
        lambda: fit("ppl_lvm.models:GaussianMixture", None, X, settings={"components": 0}),
    ],
)
def test_error_of_the_user_has_frames_of_the_user_only(fails: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        fails()
    lines = "".join(traceback.format_exception(caught.value))
    files = {step.filename for step in traceback.extract_tb(caught.value.__traceback__)}
    assert files == {__file__}
    assert "site-packages" not in lines
    assert "/ppl_lvm/" not in lines


def test_error_in_a_program_file_keeps_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def model(x):\n    pass\n\nmodel(*{}['a'])\n")
    with pytest.raises(ValueError, match=r"KeyError: 'a' \(line 4") as caught:
        fit(f"{tmp_path}/mine.py:model", None, X)
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError)
    files = [Path(step.filename).name for step in traceback.extract_tb(cause.__traceback__)]
    assert files == ["mine.py"]


def test_unexpected_error_keeps_its_traceback() -> None:
    names = {"__name__": "ppl_lvm.inside"}
    exec("def inside():\n    raise KeyError('z')", names)
    call: Callable[[], None] = trims_traceback(names["inside"])  # type: ignore[arg-type]
    with pytest.raises(KeyError) as caught:
        call()
    assert len(traceback.extract_tb(caught.value.__traceback__)) == 3


def test_error_that_the_users_program_raises_keeps_its_frames() -> None:
    def raises() -> None:
        raise KeyError("mine")

    @trims_traceback
    def call() -> None:
        raises()

    with pytest.raises(KeyError) as caught:
        call()
    names = [step.name for step in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "raises"


def test_check_has_no_frames_where_the_program_fails() -> None:
    assert check(sums_columns, no_guide, X).codes == ["model-fails"]
