"""Widths of the layers of a hierarchical model."""

from typing import Any


def layer_widths(model: Any, guide: str) -> tuple[int, ...]:
    """Widths of the model's layers.

    Raises:
        ValueError: for a model without layers.
    """
    widths = getattr(model, "latent", None)
    if not isinstance(widths, tuple) or not hasattr(model, "prior"):
        raise ValueError(
            f"{guide}: it serves models with layers of latents (latent=(8, 4), and prior(l, "
            f"above)), such as HierarchicalVAE; {type(model).__name__} has none. "
            "Use AmortizedNormal."
        )
    return widths
