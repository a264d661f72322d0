"""Hostile run directories, and a detector of what they execute."""

import hashlib
import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SEED = 16
EVIL = """import pathlib
from torch import nn
pathlib.Path({canary!r}).touch()
class Model(nn.Module):
    def __init__(self, *arguments, **settings):
        super().__init__()
        pathlib.Path({canary!r}).touch()
    def forward(self, *batch):
        pass
"""
ESCAPE = "\x1b]0;owned\x07<script>alert(1)</script>\u202e"
JUNK: tuple[Any, ...] = (
    *(None, True, -1, 10**9, 10**400, 1e308, float("nan"), "x", ESCAPE, "../../x", "os:system"),
    *([], {}, [[[]]], {"__class__": "x"}, ["touch", "x"], "x" * 10_000),
)


@dataclass(frozen=True)
class Attack:
    """A change of a run directory.

    Attributes:
        name: for messages.
        change: edits the directory; its second argument is the file that an execution touches.
        trust: what the caller of `load_run` allows.
        sentence: whether loading must fail.
    """

    name: str
    change: Callable[[Path, Path], None]
    trust: Any = False
    sentence: bool = True


def edit(directory: Path, *path: Any, value: Any) -> None:
    """Set an entry of run.json."""
    file = directory / "run.json"
    record = part = json.loads(file.read_text())
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file.write_text(json.dumps(record))


def addresses(canary: str) -> dict[str, dict[str, Any]]:
    """Address -> settings with which a call would touch the canary, or do worse."""
    touch, text = ["touch", canary], f"open({canary!r}, 'w')"
    return {
        "subprocess:Popen": {"args": touch},
        "subprocess:run": {"args": touch},
        "subprocess:check_output": {"args": touch},
        "os:system": {"command": f"touch {canary}"},
        "os:popen": {"cmd": f"touch {canary}"},
        "os:mkdir": {"path": canary},
        "os:mknod": {"path": canary},
        "io:FileIO": {"file": canary, "mode": "w"},
        "io:open": {"file": canary, "mode": "w"},
        "builtins:open": {"file": canary, "mode": "w"},
        "builtins:exec": {"source": text},
        "builtins:eval": {"source": text},
        "builtins:type": {},
        "logging:FileHandler": {"filename": canary},
        "logging.handlers:RotatingFileHandler": {"filename": canary},
        "logging.config:fileConfig": {"fname": canary},
        "shutil:copyfile": {"src": __file__, "dst": canary},
        "tempfile:NamedTemporaryFile": {"delete": False},
        "zipfile:ZipFile": {"file": canary, "mode": "w"},
        "sqlite3:connect": {"database": canary},
        "functools:partial": {"func": "os.system"},
        "operator:attrgetter": {},
        "importlib:import_module": {"name": "antigravity"},
        "runpy:run_path": {"path_name": canary},
        "timeit:Timer": {"stmt": text},
        "code:InteractiveInterpreter": {},
        "pickle:Unpickler": {"file": canary},
        "multiprocessing:Process": {},
        "threading:Thread": {},
        "webbrowser:open": {"url": "file:///"},
        "antigravity:geohash": {},
        "urllib.request:urlopen": {"url": "http://127.0.0.1:9"},
        "socket:create_connection": {"address": ["127.0.0.1", 9]},
        "ctypes:CDLL": {"name": None},
        "torch:save": {"obj": 1, "f": canary},
        "torch:load": {"f": canary, "weights_only": False},
        "torch.hub:load": {"repo_or_dir": "x/y", "model": "z"},
        "torch.utils.cpp_extension:load": {"name": "x", "sources": [canary]},
        "torch.nn:Linear": {"in_features": 2, "out_features": 2},
        "numpy:save": {"file": canary, "arr": 1},
        "numpy:load": {"file": canary, "allow_pickle": True},
        "pandas:read_pickle": {"filepath_or_buffer": canary},
        "joblib:load": {"filename": canary},
        "pyro.infer:SVI": {},
        "pyro.infer.autoguide.initialization:init_to_median": {},
        "pyro.infer.autoguide.guides:poutine": {},
        "ppl_lvm.core:os.system": {"command": f"touch {canary}"},
        "ppl_lvm.core.storage:os": {},
        "ppl_lvm.core.storage:tempfile": {},
        "ppl_lvm.core.storage:Path": {},
        "ppl_lvm.core.storage:write_atomic": {"path": canary, "content": ""},
        "ppl_lvm.programs.loading:load_program": {"address": "antigravity:x"},
        "ppl_lvm.programs.loading:importlib": {},
        "ppl_lvm:fit": {"guide": "subprocess:Popen", "data": "iris", "directory": canary},
        "ppl_lvm:load_run": {"directory": canary},
        "ppl_lvm.fitting.svi:fit": {"guide": None, "data": "iris", "directory": canary},
        "ppl_lvm.__main__:main": {},
        "ppl_lvm.cli:main": {},
        "ppl_lvm.runs.run:Run": {},
        "ppl_lvm.report.report:report": {"path": canary},
        "ppl_lvm.models:__loader__": {},
        "ppl_lvm.models": {},
        ":": {},
        "": {},
        "\x1b[2Jos:system": {},
        "../../../etc/passwd.py:x": {},
        "~unknown/x.py:Model": {},
        "\x00.py:Model": {},
        "/dev/stdin.py:Model": {},
    }


def _address(role: str, address: str, digest: str | None) -> Callable[[Path, Path], None]:
    def change(directory: Path, canary: Path) -> None:
        settings = addresses(str(canary))[address]
        program = {"name": "x", "address": address, "settings": settings, "builder": True}
        edit(directory, role, value={**program, "digest": digest})

    return change


def _file(role: str, place: str, digest: str | None) -> Callable[[Path, Path], None]:
    """An address of a file that touches the canary; {run} is the directory, {out} another one."""

    def change(directory: Path, canary: Path) -> None:
        out = directory.parent / "outside"
        text = EVIL.format(canary=str(canary))
        for folder in (out, directory, directory / "package"):
            folder.mkdir(exist_ok=True)
            (folder / "evil.py").write_text(text)
        (directory / "package/__init__.py").write_text(text)
        (directory / "link.py").symlink_to(out / "evil.py")
        (out / "link.py").symlink_to(directory / "evil.py")
        recorded = hashlib.sha256(text.encode()).hexdigest() if digest == "equal" else digest
        address = place.format(run=directory, out=out) + ":Model"
        program = {"name": "x", "address": address, "settings": {}, "builder": True}
        edit(directory, role, value={**program, "digest": recorded})

    return change


def _programs() -> Iterator[Attack]:
    for number, address in enumerate(addresses("")):
        for role in ("model", "guide"):
            for trust in (False, True):
                digest = (None, "0" * 64)[number % 2]
                name = f"{role} {address!r} with trust={trust}"
                yield Attack(name, _address(role, address, digest), trust)
    inside = ("{run}/evil.py", "{run}/../run/evil.py", "{out}/link.py", "evil.py", "./evil.py")
    inside += ("package/evil.py", "evil", "package", "package.evil", "{run}/package/../evil.py")
    for place in inside:
        for role, trust in (("model", True), ("guide", True), ("guide", False)):
            trusted = ["package", "evil"] if trust and not place.endswith(".py") else trust
            name = f"{role} {place} with trust={trusted}"
            yield Attack(name, _file(role, place, "equal"), trusted)
    for place in ("{out}/evil.py", "{run}/link.py"):
        for digest in ("equal", None, "0" * 64, "EQUAL"):
            for trust in (False, True, ["evil"]):
                if not (digest == "equal" and trust is True):
                    name = f"guide {place}, digest {digest}, with trust={trust}"
                    yield Attack(name, _file("guide", place, digest), trust)


def _entries(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all entries of nested data."""
    items = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _entries(value, (*path, key))


def _fields(record: dict[str, Any], count: int) -> Iterator[Attack]:
    """Entries of run.json replaced by junk, and missing; what still loads is harmless."""
    paths = [p for p in _entries(record) if p[0] != "restarts" or p[1:2] != (1,)]
    random.seed(SEED)
    chosen = [(path, value) for path in paths for value in (*JUNK, "missing")]
    for path, value in random.sample(chosen, min(count, len(chosen))):

        def change(directory: Path, _: Path, path: Any = path, value: Any = value) -> None:
            edit(directory, *path, value=value)
            if value == "missing":
                file = directory / "run.json"
                record = part = json.loads(file.read_text())
                for key in path[:-1]:
                    part = part[key]
                del part[path[-1]]
                file.write_text(json.dumps(record))

        yield Attack(f"{path} = {str(value)[:40]!r}", change, sentence=False)


def _set(*path: Any, value: Any) -> Callable[[Path, Path], None]:
    return lambda directory, _: edit(directory, *path, value=value)


def _write(name: str, content: bytes) -> Callable[[Path, Path], None]:
    def change(directory: Path, _: Path) -> None:
        (directory / name).write_bytes(content)

    return change


def _tensors(name: str, **entries: Any) -> Callable[[Path, Path], None]:
    """Tensors of a file replaced, or removed by None; a function changes them."""

    def change(directory: Path, _: Path) -> None:
        file = directory / f"{name}.safetensors"
        tensors = load_file(file) if file.exists() else {}
        for key, value in entries.items():
            which = next((k for k in tensors if k.startswith(key)), key)
            tensor = tensors.pop(which, None)
            if value is not None:
                tensors[which] = value(tensor) if callable(value) else value
        save_file({k: t.contiguous() for k, t in tensors.items()}, file, {"data": "{}"})

    return change


def _linked(name: str) -> Callable[[Path, Path], None]:
    def change(directory: Path, _: Path) -> None:
        outside = directory.parent / "secret"
        shutil.copy(directory / name, outside)
        (directory / name).unlink()
        (directory / name).symlink_to(outside)

    return change


def _special(name: str, make: Callable[[Path], None]) -> Callable[[Path, Path], None]:
    def change(directory: Path, _: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return change


class _Payload:
    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


FILES = ("run.json", "history.json", "parameters.safetensors")


def _contents() -> Iterator[Attack]:
    deep = b"[" * 200_000
    zeros, one = torch.zeros(2), torch.ones(1)
    for name in FILES:
        yield Attack(f"{name} is a link", _linked(name))
        yield Attack(f"{name} is a pipe", _special(name, os.mkfifo))
        yield Attack(f"{name} is a folder", _special(name, os.mkdir))
        yield Attack(f"{name} is a device", _special(name, lambda p: p.symlink_to("/dev/zero")))
        yield Attack(f"{name} is a loop", _special(name, lambda p: p.symlink_to(p)))
        yield Attack(f"{name} is missing", _special(name, lambda p: None))
        contents = {"empty": b"", "deep": deep, "no text": b"\xff\xfe\x00", "pickle": b"\x80\x04."}
        contents |= {
            "null": b"null",
            "a list": b"[]",
            "NaN": b'{"bound": [NaN]}',
            "digits": b"9" * 9999,
        }
        contents["a payload"] = pickle.dumps(_Payload())
        contents["a header of 2^63"] = b"\xff" * 7 + b"\x7f" + b"{}"
        for kind, content in contents.items():
            yield Attack(f"{name} is {kind}", _write(name, content))
    history = {
        "a text": b'{"bound": "x"}',
        "short": b'{"bound": [1.0]}',
        "objects": b'{"bound": [{}]}',
    }
    for kind, content in history.items():
        yield Attack(f"history of {kind}", _write("history.json", content))
    nan = lambda t: torch.full_like(t, torch.nan)  # noqa: E731
    inf = lambda t: torch.full_like(t, torch.inf)  # noqa: E731
    parameters: dict[str, dict[str, Any]] = {
        "NaN": {"state/model": nan},
        "infinite": {"state/model": inf},
        "missing": {"state/model": None},
        "another shape": {"state/model": torch.zeros(3, 3, 3)},
        "complex": {"state/model": lambda t: t.to(torch.complex64)},
        "unknown": {"state/../../x": zeros},
        "an escape": {f"state/{ESCAPE}": zeros},
        "no rows": {"template/0": None},
        "empty rows": {"template/0": torch.zeros(0, 2)},
        "a scalar row": {"template/0": torch.zeros(())},
        "complex rows": {"template/0": lambda t: t.to(torch.complex64)},
        "wide rows": {"template/0": torch.zeros(3, 50)},
        "two tensors of rows": {"template/1": torch.zeros(24, 2)},
    }
    for kind, entries in parameters.items():
        yield Attack(f"parameters: {kind}", _tensors("parameters", **entries))
    for key in (
        "0/__dict__/x",
        "0/__class__",
        "x/bounds",
        "9999999999/bounds",
        "-1/bounds",
        "",
    ):
        change = _tensors("trajectories", **{key or "/": one})
        yield Attack(f"trajectories: {key!r}", change)
    yield Attack(
        "a trajectory of no shape", _tensors("trajectories", **{"0/bounds": torch.ones(())})
    )
    yield Attack("draws that are a pickle", _write("draws.safetensors", pickle.dumps(_Payload())))
    for key, value in {
        "components": 10**13,
        "__class__": 1,
        "self": 1,
        "covariance": "os:system",
        "floor": {"a": 1},
        "observed": [1] * 99,
    }.items():
        yield Attack(f"setting {key}", _set("model", "settings", key, value=value))
    for objective in (
        "IWAE(num_particles=1000000000000)",
        "__import__('os').system('touch canary')",
        "IWAE(num_particles=__import__('os'))",
        "Trace_ELBO.__init__.__globals__",
        "os.system",
        "(" * 10_000,
        "-" * 10_000 + "1",
        "IWAE({[]: 1})",
        "IWAE(num_particles={[]: 1})",
        "SVI()",
        "\x00",
        "",
    ):
        yield Attack(f"objective {objective[:40]!r}", _set("objective", value=objective))
    yield Attack("10^9 steps", _set("results", "steps", value=10**9))
    yield Attack("10^9 tensors", _set("data", "tensors", value=10**9))


def attacks(record: dict[str, Any], count: int) -> list[Attack]:
    """All attacks; `count` of them replace entries of `record`, the run.json."""
    return [*_programs(), *_contents(), *_fields(record, count)]


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EXECUTES = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn")
EXECUTES += ("os.spawn", "pty.spawn", "socket.connect", "socket.bind", "webbrowser.open")
EXECUTES += ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod")
EXECUTES += (
    "shutil.copyfile",
    "shutil.rmtree",
    "sqlite3.connect",
    "code.__new__",
    "urllib.Request",
)


@dataclass
class Detector:
    """Events of the interpreter by which a directory executes something, while it is on."""

    folder: Path
    on: bool = False
    events: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in EXECUTES:
            self.events.append(f"{event} {str(arguments)[:100]}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            if arguments[0] != os.devnull:
                self.events.append(f"open {arguments[:2]} to write")
        elif event == "exec":
            name = str(getattr(arguments[0], "co_filename", ""))
            if name.startswith(str(self.folder)):
                self.events.append(f"exec {name}")

    @contextmanager
    def watch(self) -> Iterator[list[str]]:
        """The events of this block."""
        self.events, self.on = [], True
        try:
            yield self.events
        finally:
            self.on = False


def detector(folder: Path) -> Detector:
    """A new detector; `folder` holds the attacker's files. Hooks stay until the process ends."""
    new = Detector(folder)
    sys.addaudithook(new)
    return new
