"""Fits without torch's compiler."""

import functools
import subprocess
import sys
from typing import Any

import pytest

from ppl_lvm.core.dynamo import without_dynamo


def test_functions_are_called_as_written_within_the_block_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def written() -> Any:
        return getattr(written, "__dynamo_disable", None)

    @functools.wraps(written)
    def decorated() -> Any:
        return written()

    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    with without_dynamo(decorated, len), without_dynamo(decorated):
        assert decorated() is written
    assert decorated() is None
    monkeypatch.setitem(sys.modules, "torch._dynamo", sys)
    with without_dynamo(decorated):
        assert decorated() is None


@pytest.mark.slow
def test_captured_fits_do_not_import_the_compiler(tmp_path: Any) -> None:
    code = f"""
import sys, torch
from ppl_lvm import fit
x = torch.randn(20, 3)
for resume in (False, True):
    run = fit("ppl_lvm.models:PPCA", None, x, num_steps=8, engine="captured",
              directory={str(tmp_path)!r}, progress=False, resume=resume)
print(run.history["bound"][-1], len(run.history["bound"]), "torch._dynamo" in sys.modules)
"""
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.split()[-2:] == ["8", "False"]
