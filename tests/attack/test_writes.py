"""Damaged files, failed writes, locks, signals, checkpoints of other runs."""

import contextlib
import errno
import functools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interrupted_runs import run_kind
from ppl_lvm import fit
from ppl_lvm.core.errors import DamagedFileError, WriteError
from ppl_lvm.core.lock import directory_lock
from ppl_lvm.core.storage import load_checkpoint, save_checkpoint, write_atomic
from ppl_lvm.models import GaussianMixture
from ppl_lvm.runs.directory import load_run
from ppl_lvm.runs.files import read_record, verify_files
from ppl_lvm.training import loop

WRITES = ("open", "fsync", "chmod", "replace")
POINTS = ("open", "fsync", "chmod", "replace", "open", "fsync")  # of a write, in order
FILES = ("run.json", "history.json", "parameters.safetensors", "trajectories.safetensors")
X = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))


class KilledError(BaseException):
    """The end of the process."""


def _fit(directory: Path, **options: Any) -> Any:
    chosen: dict[str, Any] = {"num_steps": 4, "engine": "eager", "batch_size": 8}
    chosen |= {"checkpoint_seconds": 0, "progress": False, "optimizer": "Adam(lr=0.01)", **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl_lvm.fitting.session.draw_run", lambda *_: None)
        patch.setattr("ppl_lvm.fitting.svi._evidence", lambda *_: {})
        return fit(GaussianMixture(2), None, X, directory=directory, **chosen)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("runs") / "finished"
    _fit(path)
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_in_a_run_is_noticed(finished: Path, name: str) -> None:
    path = finished / name
    content = path.read_bytes()
    positions = {*range(min(300, len(content))), *range(len(content) - 100, len(content))}
    positions |= set(random.Random(0).sample(range(len(content)), 100))
    try:
        for position in positions:
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=name.replace(".", r"\.")):
                verify_files(finished, read_record(finished))
            if name.endswith("safetensors"):
                with pytest.raises(DamagedFileError, match="checkpoint"):
                    load_checkpoint(path)
    finally:
        path.write_bytes(content)
    assert load_run(finished).results["steps"] == 4


def _counting(patch: pytest.MonkeyPatch, at: int, error: Callable[[], BaseException]) -> list[int]:
    """Raise before the call number `at` of a function of `os` that writes."""
    calls = [0]
    for name in WRITES:
        original = getattr(os, name)

        def call(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                raise error()
            return original(*args, **kwargs)

        patch.setattr(os, name, call)
    return calls


def test_a_kill_at_any_point_of_a_write_leaves_one_of_the_two_files(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    old, new = ({"a": torch.full((100,), float(v))} for v in (1, 2))
    seen = set()
    for at in range(1, 20):
        save_checkpoint(path, old, {"v": 1})
        with pytest.MonkeyPatch.context() as patch:
            calls = _counting(patch, at, KilledError)
            with contextlib.suppress(KilledError):
                save_checkpoint(path, new, {"v": 2})
        tensors, data = load_checkpoint(path)
        assert tensors["a"].tolist() == [float(data["v"])] * 100
        seen.add(data["v"])
        if calls[0] < at:
            break
    assert seen == {1, 2}


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "ENOENT"])
def test_a_failed_write_names_path_and_remedy_and_leaves_the_file(
    tmp_path: Path, code: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    number = getattr(errno, code)
    for at in range(1, len(POINTS) + 2):
        with pytest.MonkeyPatch.context() as patch:
            calls = _counting(patch, at, lambda: OSError(number, os.strerror(number)))
            message = f"{path} cannot be written: .*unchanged"
            if at <= len(POINTS):
                with pytest.raises(WriteError, match=message):
                    write_atomic(path, b"old")
            else:
                write_atomic(path, b"old")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
    assert calls[0] == len(POINTS)


@pytest.mark.slow
def test_training_goes_on_in_memory_where_no_checkpoint_can_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _fit(tmp_path / "whole")

    def full(*_: Any) -> None:
        raise WriteError(errno.ENOSPC, "x cannot be written: the disk is full. Free some space.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl_lvm.training.checkpoint.save_checkpoint", full)
        patch.setattr("ppl_lvm.runs.directory.save_checkpoint", full)
        with pytest.warns(UserWarning, match=r"disk is full.*The fit is in memory\. run\.save"):
            run = _fit(tmp_path / "full")
    assert run.history == whole.history
    run.save(tmp_path / "elsewhere")
    assert load_run(tmp_path / "elsewhere").results["bound"] == whole.results["bound"]


def test_a_second_fit_is_told_which_process_holds_the_directory(tmp_path: Path) -> None:
    with directory_lock(tmp_path):
        with pytest.raises(ValueError, match=f"in use: this process .{os.getpid()}"):
            _fit(tmp_path, resume=True)
        code = (
            "import fcntl, os, sys; f = os.open(sys.argv[1], os.O_RDWR)\n"
            "try: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
            "except BlockingIOError: print(os.pread(f, 99, 0).decode())"
        )
        words = [sys.executable, "-S", "-c", code, str(tmp_path / ".lock")]
        held = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert held.startswith(f"process {os.getpid()} on ")
    (tmp_path / ".lock").write_text("process 1 on a machine that has gone")  # a stale file
    with directory_lock(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["one", pytest.param("together", marks=pytest.mark.slow)])
def test_a_signal_during_a_step_leaves_a_checkpoint_that_resumes_bit_for_bit(
    tmp_path: Path, kind: str, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    more = {"engine": "captured", "restarts": 2} if kind == "together" else {}
    whole = _fit(tmp_path / "whole", **more)
    # Shells let processes in the background ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    begin = loop.Training.begin_step

    def begin_step(training: loop.Training, step: int) -> None:
        if step == 2 and training.options.seed == 0:
            os.kill(os.getpid(), number)
        begin(training, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "begin_step", begin_step)
        ending = SystemExit if number == signal.SIGTERM else KeyboardInterrupt
        with pytest.raises(ending) as caught:
            _fit(tmp_path / "run", checkpoint_seconds=1000, **more)
    if number == signal.SIGTERM:
        assert caught.value.args == (143,)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert "Interrupted after step 3. Continue with the same call and" in capfd.readouterr().err
    resumed = _fit(tmp_path / "run", resume=True, **more)
    assert resumed.history == whole.history
    for name, value in whole.parameters().items():
        assert torch.equal(value, resumed.parameters()[name])


def _momentum(momentum: float) -> Callable[..., Any]:
    return lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=momentum)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"objective": "IWAE(num_particles=2)"}, r"objective .*IWAE\(num_particles=3\), now"),
        (
            {"objective": "IWAE(num_particles=3)", "seed": 1},
            r"differs in seed \(0, now 1\)",
        ),
        ({"batch_size": 9}, r"batch_size \(8, now 9\)"),
        ({"optimizer": _momentum(0.5)}, "code of optimizer"),
        ({"optimizer": functools.partial(torch.optim.SGD, lr=0.02)}, "optimizer"),
        ({"validation": X[:6] + 1}, "held_out"),
        ({"kl_weight": 0.5}, "kl_weight"),
    ],
)
def test_resume_names_what_differs_and_keeps_the_record(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    options = {"objective": "IWAE(num_particles=3)", "optimizer": _momentum(0.9)}
    options["validation"] = X[:6]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "run", lambda *_: (_ for _ in ()).throw(KilledError()))
        with pytest.raises(KilledError):
            _fit(tmp_path, **options)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError, match=f"holds another run: .*{named}"):
        _fit(tmp_path, resume=True, **{**options, **change})
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path: Path, finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert list(record)[-1] == "checksum"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "run", lambda *_: (_ for _ in ()).throw(KilledError()))
        with pytest.raises(KilledError):
            _fit(tmp_path, seed=7)
    (tmp_path / "checkpoint.safetensors").write_bytes(
        (finished / "checkpoint.safetensors").read_bytes()
    )
    with pytest.raises(ValueError, match=r"of another run: its options differs in seed \(0, now"):
        _fit(tmp_path, seed=7, resume=True)


def _without(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors, data = load_checkpoint(path)
        parts = {key: t for key, t in tensors.items() if key != name}
        save_checkpoint(path, parts, {key: v for key, v in data.items() if key != name})

    return change


def _made(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_without("random/torch"), r"does not fit this run .*random/torch"),
        (_without("step"), r"does not fit this run .*step"),
        (_without("state/model/weights_unconstrained"), r"does not fit this run"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "is cut short"),
        (_made(os.mkfifo), "no regular file"),
        (_made(os.mkdir), "no regular file"),
        (_made(lambda path: path.symlink_to("/dev/zero")), "link out of the run directory"),
    ],
)
def test_a_hostile_checkpoint_is_refused_by_name(
    tmp_path: Path, change: Callable[[Path], Any], named: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "finish", lambda *_: (_ for _ in ()).throw(KilledError()))
        with pytest.raises(KilledError):
            _fit(tmp_path, num_steps=1)
    change(tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match=rf"checkpoint\.safetensors.*{named}"):
        _fit(tmp_path, num_steps=1, resume=True)


def test_a_kind_of_run_is_fitted_by_the_harness(tmp_path: Path) -> None:
    assert run_kind("em", tmp_path / "em").results["steps"] > 1
