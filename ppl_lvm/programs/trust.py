"""Programs that a run directory may name.

A run directory is data that people send each other, so that an address in its run.json is not
imported because it stands there. Loaded are

1. programs that were fitted in this process, which are at hand: nothing is imported;
2. programs of `ppl_lvm`, Pyro's autoguides, and programs of packages that the caller lists;
3. with trust=True, programs of a file or module outside of the run directory whose SHA-256 is the
   one that the run has recorded.

The object at an address must be defined in that package or file, and be a module, a class of
modules, a function of the batch, or a builder of guides. Nothing else is called.
"""

import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from torch import nn

from ppl_lvm.core.frames import in_package
from ppl_lvm.programs.loading import load_program, program_file, source_digest

BUNDLED = ("ppl_lvm", "pyro.infer.autoguide")
GUIDES = "ppl_lvm.guides"

# (address, SHA-256 of its file) -> program of a fit in this process
_fitted: WeakValueDictionary[tuple[str, str], Any] = WeakValueDictionary()


class UntrustedError(ValueError):
    """A run names a program that loading may not import or call."""


def remember_fitted(program: Any, address: str | None, digest: str | None) -> None:
    """Let runs of this program load in this process without an import."""
    if address is not None and digest is not None:
        _fitted[address, digest] = program


@dataclass(frozen=True)
class Trust:
    """Permission of the caller of `load_run`.

    Attributes:
        directory: the run directory.
        packages: whose programs are imported.
        others: whether programs elsewhere are, if their files are outside of the directory and as
            they were at the fit.
    """

    directory: Path
    packages: tuple[str, ...] = BUNDLED
    others: bool = False

    @classmethod
    def of(cls, trust: bool | Iterable[str], directory: Path) -> "Trust":
        """The permission that the argument `trust` gives."""
        if isinstance(trust, bool):
            return cls(directory, others=trust)
        names = [] if isinstance(trust, str) else list(trust)
        if not names or not all(isinstance(n, str) and _is_dotted(n) for n in names):
            raise ValueError(
                f"trust={trust!r}: this is no list of packages. Pass trust=['mypackage'], or True "
                "for programs anywhere outside of the run directory that are as at the fit."
            )
        return cls(directory, (*BUNDLED, *names))

    def lists(self, address: str | None) -> bool:
        """True if the address is in a package that is imported."""
        return address is not None and in_package(address.rpartition(":")[0], *self.packages)

    def load(self, address: str, digest: str | None, what: str) -> Any:
        """The program at an address of run.json.

        Args:
            digest: SHA-256 of its file when it was fitted, None if unknown.
            what: "model" or "guide".

        Raises:
            UntrustedError: it may not be imported, or is no program.
            FileNotFoundError, ImportError: its file or module does not exist.
        """
        program = _fitted.get((address, digest or ""))
        if program is None:
            file = self._file(address, what)
            self._require_trusted(address, digest, file, what)
            program = load_program(address)
            self._require_home(program, address, file, what)
        if not _is_program(program, what):
            raise UntrustedError(
                f"{self.directory}: its {what} {address} is no torch or Pyro module, function of "
                f"the data or builder of guides, and nothing else is called. {_pass_it(what)}"
            )
        return program

    def _file(self, address: str, what: str) -> Path:
        """The file of an address, found without importing anything."""
        place, _, name = address.rpartition(":")
        if not name.isidentifier() or not (place.endswith(".py") or _is_dotted(place)):
            raise UntrustedError(
                f"{self.directory}/run.json: {what}.address {address!r} is not an address, "
                f"file.py:Name or package.module:Name. {_pass_it(what)}"
            )
        file = program_file(place)
        if file is None or not file.is_file():
            kind = FileNotFoundError if place.endswith(".py") else ImportError
            raise kind(f"{place}, the {what} of {self.directory}, does not exist. {_pass_it(what)}")
        return file

    def _require_trusted(self, address: str, digest: str | None, file: Path, what: str) -> None:
        """Raise unless the file of an address may be run."""
        if file.is_relative_to(self.directory.resolve()):
            raise UntrustedError(
                f"{self.directory}: its {what} is {file}, a file inside the run directory, and "
                f"such a file is never run. {_pass_it(what)}"
            )
        if self.lists(address):
            return
        if not self.others:
            package = address.partition(":")[0].partition(".")[0]
            listed = "" if address.partition(":")[0].endswith(".py") else f" or trust=[{package!r}]"
            raise UntrustedError(
                f"{self.directory}: its {what} is {address}, and loading would run this program. "
                f"If you trust {file}, add --trust (in Python: trust=True{listed}), or pass the "
                f"program: load_run(directory, {what}=...)."
            )
        if digest is None or source_digest(address) != digest:
            problem = "has changed since the run was made: its SHA-256 is not"
            if digest is None:
                problem = "cannot be compared with the file of the fit: there is no"
            raise UntrustedError(
                f"{self.directory}: {file}, its {what}, {problem} {what}.digest in run.json. "
                f"Restore the file, or pass the program: load_run(directory, {what}=...)."
            )

    def _require_home(self, program: Any, address: str, file: Path, what: str) -> None:
        """Raise unless a program is defined where its address says."""
        is_definition = inspect.isclass(program) or inspect.isfunction(program)
        home = str((program if is_definition else type(program)).__module__)
        if in_package(home, *self.packages) or program_file(home) == file:
            return
        if isinstance(program, nn.Module):  # an object that the trusted file has made
            return
        raise UntrustedError(
            f"{self.directory}: its {what} {address} is not defined there but in {home}. "
            f"{_pass_it(what)}"
        )


def _is_program(program: Any, what: str) -> bool:
    """True for what may be called: of this package and Pyro, modules and exported guides only."""
    if inspect.isclass(program):
        return issubclass(program, nn.Module)
    if isinstance(program, nn.Module):
        return True
    if not inspect.isfunction(program):
        return False
    if not in_package(program.__module__, *BUNDLED):
        return True
    guides = importlib.import_module(GUIDES)
    return what == "guide" and program in [getattr(guides, name) for name in guides.__all__]


def _is_dotted(place: str) -> bool:
    """True for the name of a module, except of one that is run by its import."""
    return all(part.isidentifier() and part != "__main__" for part in place.split("."))


def _pass_it(what: str) -> str:
    return f"Pass the program: load_run(directory, {what}=...)."
