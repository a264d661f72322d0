"""Amortized guide of sequences by a bidirectional GRU.

    h_n = bidirectional GRU(x_n),    q(z_n | x_n) = Π_t N(μ(h_nt), diag σ²(h_nt))

Given x the steps are independent; neighboring states are coupled through the neighborhood of x that
both read. Serves models with one local latent of event (T, D) and sequences (N, T, P), such as
`models/deep_markov.py`. All sequences have the length that the guide was built for; short ones are
padded with NaN.

Reference:
    Krishnan, Shalit, Sontag (2017). Structured inference networks for nonlinear state space
    models. https://arxiv.org/abs/1609.09869 (their "MF-LR")
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppl_lvm.authoring import Signature
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, supported_sites
from ppl_lvm.guides.parts.site_guide import Latents, serving, signature_of
from ppl_lvm.guides.parts.variational_families import DiagonalFamily, TransformedFactor


@serving(Latents.SEQUENCES, description="diagonal normals from one bidirectional GRU")
class AmortizedRecurrent(EncoderGuide):
    """q(z | x) = Π_t N(μ(h_t), diag σ²(h_t)) for a local latent of event (T, D).

    Args:
        model: the model, or its signature.
        batch: arguments of the model: sequences (N, T, P), possibly other tensors after them.
        width: units of the recurrent layer per direction.

    Raises:
        ValueError: for a model or data that it does not serve.
    """

    accepts_signature = True

    def __init__(
        self, model: Callable[..., Any] | Signature, *batch: Tensor, width: Count = 32
    ) -> None:
        model_signature = signature_of(model, *batch)
        sites = supported_sites(model_signature, "AmortizedRecurrent")
        x = batch[0]
        site = sites[0]
        if x.dim() != 3 or len(sites) > 1 or site.event_shape[:1] != x.shape[1:2]:
            shapes = ", ".join(f"{s.name} {tuple(s.event_shape)}" for s in sites)
            raise ValueError(
                "AmortizedRecurrent: it serves one latent of event (T, D) and sequences (N, T, P); "
                f"the latents are {shapes}, the data {tuple(x.shape)}. Use AmortizedNormal."
            )
        encoder = RecurrentEncoder(x, 2 * site.event_shape[1:].numel(), width)
        factors = [TransformedFactor(site, model_signature, DiagonalFamily())]
        outputs = "T D of μ and T D of log σ"
        super().__init__(
            model_signature, factors, batch, encoder=encoder, hidden=(), outputs=outputs
        )


class RecurrentEncoder(nn.Module):
    """(μ, log σ) of every step of sequences, as one row (N, 2 T D): first all μ, then all log σ.

    Columns are standardized by `x` (N, T, P); missing values (NaN) are zero, with an indicator.
    """

    means: Tensor
    scales: Tensor

    def __init__(self, x: Tensor, outputs: Count, width: Count) -> None:
        super().__init__()
        rows = x.detach().flatten(0, 1).double()
        means = rows.nanmean(0).nan_to_num()
        spread = (rows - means).square().nanmean(0).nan_to_num().sqrt()
        self.register_buffer("means", means.to(x.dtype))
        self.register_buffer("scales", torch.where(spread > 0, spread, 1.0).to(x.dtype))
        self.gru = nn.GRU(2 * x.shape[2], width, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * width, outputs)
        self.to(dtype=x.dtype, device=x.device)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        missing = x.isnan()
        scaled = ((x - self.means) / self.scales).nan_to_num()
        h, _ = self.gru(torch.cat([scaled, missing.to(x.dtype)], -1))  # (N, T, 2 width)
        mu, log_sigma = self.out(h).chunk(2, dim=-1)
        return torch.cat([mu.flatten(1), log_sigma.flatten(1)], -1)
