"""A guide of the encoder that the model's prior is made of: q(z_n | x_n) of a VampPrior.

    p(z) = 1/K Σ_k q(z | u_k)    and    q(z_n | x_n)    with one q

so that prior and posterior learn together. Serves a model with `code_prior.encoder`, such as
`VAE(prior="vamp(components=50)")`.

Reference:
    Tomczak, Welling (2018). VAE with a VampPrior. https://arxiv.org/abs/1705.07120
"""

from typing import Any

from torch import Tensor

from ppl_lvm.guides.amortized import AmortizedNormal
from ppl_lvm.programs.signatures import signature


def vamp_prior_guide(model: Any, *batch: Tensor) -> AmortizedNormal:
    """An AmortizedNormal whose encoder is the one of `model.code_prior`.

    Args:
        model: with `code_prior.encoder`.
        batch: what it is called with.

    Raises:
        ValueError: for a model whose prior has no encoder.
    """
    declared = signature(model, *batch)  # a model's lazily made parts exist once it has run
    encoder = getattr(getattr(model, "code_prior", None), "encoder", None)
    if encoder is None:
        raise ValueError(
            f"{type(model).__name__} has no prior made of an encoder. Use AmortizedNormal, or "
            'build the model with prior="vamp(components=50)".'
        )
    return AmortizedNormal(declared, *batch, encoder=encoder)
