"""Example batches of the kinds of data that models take."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ExampleBatch:
    """A kind of data, with code that draws a batch of it.

    Attributes:
        name: the kind.
        body: body of a function that returns the batch.
        source: value of --data for such data.
    """

    name: str
    body: str
    source: str

    @property
    def code(self) -> str:
        """The body, indented, for a file that imports torch."""
        return textwrap.indent(self.body, "    ")

    def make(self) -> tuple[Any, ...]:
        """The batch."""
        namespace: dict[str, Any] = {}
        exec(f"import torch\ndef rows():\n    torch.manual_seed(0)\n{self.code}", namespace)
        rows: Callable[[], tuple[Any, ...]] = namespace["rows"]
        return rows()


EXAMPLES = (
    ExampleBatch("rows of numbers", "return (torch.randn(60, 4),)", "iris"),
    ExampleBatch("bits", "return (torch.bernoulli(torch.full((60, 12), 0.5)),)", "x.csv"),
    ExampleBatch("counts", "return (torch.poisson(torch.full((60, 6), 3.0)),)", "x.csv"),
    ExampleBatch("one count a row", "return (torch.poisson(torch.full((60,), 3.0)),)", "x.npy"),
    ExampleBatch(
        "estimates and their errors",
        "return (torch.stack([torch.randn(30), 0.5 + torch.rand(30)], -1),)",
        "x.csv",
    ),
    ExampleBatch("sequences", "return (torch.randn(30, 5, 2),)", "x.npy"),
    ExampleBatch("sequences of bits", "return (torch.randn(30, 5, 2).gt(0).float(),)", "x.npy"),
    ExampleBatch("sequences of one number", "return (torch.randn(30, 5),)", "x.npy"),
    ExampleBatch(
        "inputs and a number",
        "x = torch.randn(60, 3)\nreturn x, x.sum(-1) + 0.1 * torch.randn(60)",
        "xy.npz",
    ),
    ExampleBatch(
        "inputs and a bit", "x = torch.randn(60, 3)\nreturn x, (x.sum(-1) > 0).float()", "xy.npz"
    ),
    ExampleBatch(
        "inputs and rows of bits",
        "x = torch.randn(60, 3)\nreturn x, (x @ torch.randn(3, 12) > 0).float()",
        "xy.npz",
    ),
    ExampleBatch(
        "inputs and a count",
        "x = torch.randn(60, 3)\nreturn x, torch.poisson(x.sum(-1).clamp(max=2).exp())",
        "xy.npz",
    ),
)
