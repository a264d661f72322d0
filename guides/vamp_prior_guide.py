"""Guide of a VampPrior model: the encoder of the prior.

    p(z) = 1/K Σ_k q(z | u_k)    and    q(z_n | x_n)    with the same q

so that prior and posterior are learned together. Serves a model with `code_prior.encoder`, such as
`VAE(prior="vamp(components=50)")`.

Reference:
    Tomczak, Welling (2018). VAE with a VampPrior. https://arxiv.org/abs/1705.07120
"""

from typing import Any

from torch import Tensor

from ppl_lvm.authoring import signature
from ppl_lvm.core.arguments import checked
from ppl_lvm.guides.amortized import AmortizedNormal
from ppl_lvm.guides.parts.site_guide import Latents, serving


@serving(Latents.ENCODER_PRIOR, description="diagonal normals from the encoder of the prior")
@checked
def vamp_prior_guide(model: Any, *batch: Tensor) -> AmortizedNormal:
    """An AmortizedNormal whose encoder is the one of `model.code_prior`.

    Args:
        model: a model with `code_prior.encoder`.
        batch: its arguments.

    Raises:
        ValueError: for a model whose prior has no encoder.
    """
    model_signature = signature(model, *batch)  # creates the lazy parts of the model
    encoder = getattr(getattr(model, "code_prior", None), "encoder", None)
    if encoder is None:
        raise ValueError(
            f"{type(model).__name__}: its prior has no encoder. Use AmortizedNormal, or build the "
            'model with prior="vamp(components=50)".'
        )
    return AmortizedNormal(model_signature, *batch, encoder=encoder)
