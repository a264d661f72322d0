"""Guide of Template.

It is the default guide; write your own in its place.
"""

from typing import Any

import ppl_lvm


def template_guide(model: Any, *batch: Any) -> Any:
    """A program with the model's signature that samples the latent sites of the model."""
    return ppl_lvm.guides.auto_guide(model, *batch)
