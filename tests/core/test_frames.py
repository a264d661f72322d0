"""Owners of stack frames."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from ppl_lvm.core.frames import is_library, is_users


def frame_of(module: str, filename: str) -> FrameType:
    """A frame of a function that a module defines in a file."""
    space: dict[str, Any] = {"__name__": module, "sys": sys}
    exec(compile("def frame(): return sys._getframe()", filename, "exec"), space)
    function: Callable[[], FrameType] = space["frame"]
    return function()


@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("torch.nn.functional", True),
        ("pyro", True),
        ("numpy.linalg", True),
        ("torchtools.losses", False),
        ("pyroved.models", False),
        ("numpyro.infer", False),
        ("__main__", False),
    ],
)
def test_library_is_recognized_by_whole_components_of_the_module_name(
    module: str, library: bool
) -> None:
    assert is_library(frame_of(module, "/site-packages/pyro/file.py")) is library


def test_users_module_named_like_a_standard_one_is_the_users() -> None:
    assert not is_library(frame_of("statistics", "/home/somebody/statistics.py"))
    assert is_library(frame_of("statistics", str(sys.modules["traceback"].__file__)))


def test_generated_code_is_a_library_unless_typed_at_a_prompt() -> None:
    assert is_library(frame_of("somebody.module", "<string>"))
    assert not is_library(frame_of("__main__", "<stdin>"))


@pytest.mark.parametrize(
    ("module", "users"),
    [
        ("ppl_lvm.models.vae", True),
        ("ppl_lvm.guides.auto", True),
        ("ppl_lvm.estimators.elbo", False),
        ("ppl_lvm_extras.models", True),
    ],
)
def test_bundled_programs_are_treated_as_the_users(module: str, users: bool) -> None:
    assert is_users(frame_of(module, "/somewhere/file.py")) is users
