"""Kinds of data that a model may take: what a new test tries its model on."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """A kind of data.

    Attributes:
        name: what people call it.
        body: the lines of a function that returns the batch.
        source: what to write after --data to have such data.
    """

    name: str
    body: str
    source: str

    @property
    def code(self) -> str:
        """The body of a function, indented, for a file that imports torch."""
        return textwrap.indent(self.body, "    ")

    def make(self) -> tuple[Any, ...]:
        """The batch."""
        space: dict[str, Any] = {}
        exec(f"import torch\ndef rows():\n    torch.manual_seed(0)\n{self.code}", space)
        rows: Callable[[], tuple[Any, ...]] = space["rows"]
        return rows()


CANDIDATES = (
    Candidate("rows of numbers", "return (torch.randn(60, 4),)", "iris"),
    Candidate("bits", "return (torch.bernoulli(torch.full((60, 12), 0.5)),)", "x.csv"),
    Candidate("counts", "return (torch.poisson(torch.full((60, 6), 3.0)),)", "x.csv"),
    Candidate("one count a row", "return (torch.poisson(torch.full((60,), 3.0)),)", "x.npy"),
    Candidate(
        "estimates and their errors",
        "return (torch.stack([torch.randn(30), 0.5 + torch.rand(30)], -1),)",
        "x.csv",
    ),
    Candidate("sequences", "return (torch.randn(30, 5, 2),)", "x.npy"),
    Candidate("sequences of bits", "return (torch.randn(30, 5, 2).gt(0).float(),)", "x.npy"),
    Candidate("sequences of one number", "return (torch.randn(30, 5),)", "x.npy"),
    Candidate(
        "inputs and a number",
        "x = torch.randn(60, 3)\nreturn x, x.sum(-1) + 0.1 * torch.randn(60)",
        "xy.npz",
    ),
    Candidate(
        "inputs and a bit",
        "x = torch.randn(60, 3)\nreturn x, (x.sum(-1) > 0).float()",
        "xy.npz",
    ),
    Candidate(
        "inputs and rows of bits",
        "x = torch.randn(60, 3)\nreturn x, (x @ torch.randn(3, 12) > 0).float()",
        "xy.npz",
    ),
    Candidate(
        "inputs and a count",
        "x = torch.randn(60, 3)\nreturn x, torch.poisson(x.sum(-1).clamp(max=2).exp())",
        "xy.npz",
    ),
)
