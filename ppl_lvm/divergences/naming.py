"""Divergences by name, in call syntax."""

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.call_syntax import build, parse_call
from ppl_lvm.core.messages import unknown
from ppl_lvm.divergences.base import Divergence
from ppl_lvm.divergences.chi_square import ChiSquare
from ppl_lvm.divergences.energy_distance import EnergyDistance
from ppl_lvm.divergences.jensen_shannon import JensenShannon
from ppl_lvm.divergences.kl import ForwardKL, ReverseKL
from ppl_lvm.divergences.mmd import MMD
from ppl_lvm.divergences.renyi import RenyiDivergence

DIVERGENCES: tuple[type[Divergence], ...] = (
    *(ForwardKL, ReverseKL, RenyiDivergence, ChiSquare, JensenShannon, MMD, EnergyDistance),
)


@checked
def divergence_by_name(text: str) -> Divergence:
    """Build a divergence from its name in call syntax.

    The suffixes "Divergence" and "Distance" are optional.

    >>> divergence_by_name("Renyi(alpha=0.2)").name
    'Renyi(alpha=0.2)'

    Raises:
        ValueError: for an unknown name or argument.
    """
    name, settings = parse_call(text)
    kinds = {kind.short_name(): kind for kind in DIVERGENCES}
    kinds_by_any_name = kinds | {kind.__name__: kind for kind in DIVERGENCES}
    if name not in kinds_by_any_name:
        raise ValueError(unknown("divergence", name, kinds))
    divergence: Divergence = build(kinds_by_any_name[name], settings=settings, what=name)
    return divergence
