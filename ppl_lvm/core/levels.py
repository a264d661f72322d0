"""Choices of `fit`, without an import of torch."""

from typing import Literal, get_args

Level = Literal["auto", "eager", "captured", "compiled"]
LEVELS: tuple[Level, ...] = get_args(Level)
Method = Literal["auto", "svi", "laplace", "pathfinder", "batch_and_match", "dadvi"]
