"""Programs that a hostile run.json names."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from directory_attack import Attack, edit

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
CANARY = "CANARY"  # stands for the file that an execution touches
TOUCH, OPEN = ["touch", CANARY], f"open({CANARY!r}, 'w')"

# Address -> settings with which a call would touch the canary, or do worse.
ADDRESSES: dict[str, dict[str, Any]] = {
    "subprocess:Popen": {"args": TOUCH},
    "subprocess:run": {"args": TOUCH},
    "subprocess:check_output": {"args": TOUCH},
    "os:system": {"command": f"touch {CANARY}"},
    "os:popen": {"cmd": f"touch {CANARY}"},
    "os:mkdir": {"path": CANARY},
    "os:mknod": {"path": CANARY},
    "io:FileIO": {"file": CANARY, "mode": "w"},
    "io:open": {"file": CANARY, "mode": "w"},
    "builtins:open": {"file": CANARY, "mode": "w"},
    "builtins:exec": {"source": OPEN},
    "builtins:eval": {"source": OPEN},
    "builtins:type": {},
    "logging:FileHandler": {"filename": CANARY},
    "logging.handlers:RotatingFileHandler": {"filename": CANARY},
    "logging.config:fileConfig": {"fname": CANARY},
    "shutil:copyfile": {"src": __file__, "dst": CANARY},
    "tempfile:NamedTemporaryFile": {"delete": False},
    "zipfile:ZipFile": {"file": CANARY, "mode": "w"},
    "sqlite3:connect": {"database": CANARY},
    "functools:partial": {"func": "os.system"},
    "operator:attrgetter": {},
    "importlib:import_module": {"name": "antigravity"},
    "runpy:run_path": {"path_name": CANARY},
    "timeit:Timer": {"stmt": OPEN},
    "code:InteractiveInterpreter": {},
    "pickle:Unpickler": {"file": CANARY},
    "multiprocessing:Process": {},
    "threading:Thread": {},
    "webbrowser:open": {"url": "file:///"},
    "antigravity:geohash": {},
    "urllib.request:urlopen": {"url": "http://127.0.0.1:9"},
    "socket:create_connection": {"address": ["127.0.0.1", 9]},
    "ctypes:CDLL": {"name": None},
    "torch:save": {"obj": 1, "f": CANARY},
    "torch:load": {"f": CANARY, "weights_only": False},
    "torch.hub:load": {"repo_or_dir": "x/y", "model": "z"},
    "torch.utils.cpp_extension:load": {"name": "x", "sources": [CANARY]},
    "torch.nn:Linear": {"in_features": 2, "out_features": 2},
    "numpy:save": {"file": CANARY, "arr": 1},
    "numpy:load": {"file": CANARY, "allow_pickle": True},
    "pandas:read_pickle": {"filepath_or_buffer": CANARY},
    "joblib:load": {"filename": CANARY},
    "pyro.infer:SVI": {},
    "pyro.infer.autoguide.initialization:init_to_median": {},
    "pyro.infer.autoguide.guides:poutine": {},
    "ppl_lvm.core:os.system": {"command": f"touch {CANARY}"},
    "ppl_lvm.core.storage:os": {},
    "ppl_lvm.core.storage:tempfile": {},
    "ppl_lvm.core.storage:Path": {},
    "ppl_lvm.core.storage:write_atomic": {"path": CANARY, "content": ""},
    "ppl_lvm.programs.loading:load_program": {"address": "antigravity:x"},
    "ppl_lvm.programs.loading:importlib": {},
    "ppl_lvm:fit": {"guide": "subprocess:Popen", "data": "iris", "directory": CANARY},
    "ppl_lvm:load_run": {"directory": CANARY},
    "ppl_lvm.fitting.svi:fit": {"guide": None, "data": "iris", "directory": CANARY},
    "ppl_lvm.__main__:main": {},
    "ppl_lvm.cli:main": {},
    "ppl_lvm.runs.run:Run": {},
    "ppl_lvm.report.report:report": {"path": CANARY},
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
        settings = json.loads(json.dumps(ADDRESSES[address]).replace(CANARY, str(canary)))
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


def program_attacks() -> Iterator[Attack]:
    for number, address in enumerate(ADDRESSES):
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
