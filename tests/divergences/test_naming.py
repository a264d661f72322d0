"""Divergences by name, with and without their suffix."""

import pytest

from ppl_lvm.divergences import DIVERGENCES, EnergyDistance, RenyiDivergence, divergence_by_name


@pytest.mark.parametrize("name", ["Renyi(alpha=0.2)", "RenyiDivergence(alpha=0.2)"])
def test_divergence_by_name_accepts_suffix_divergence(name: str) -> None:
    divergence = divergence_by_name(name)
    assert isinstance(divergence, RenyiDivergence)
    assert divergence.alpha == 0.2
    assert divergence.name == "Renyi(alpha=0.2)"


@pytest.mark.parametrize("name", ["Energy", "EnergyDistance"])
def test_divergence_by_name_accepts_suffix_distance(name: str) -> None:
    assert isinstance(divergence_by_name(name), EnergyDistance)


def test_every_divergence_is_built_from_its_printed_name() -> None:
    for kind in DIVERGENCES:
        assert type(divergence_by_name(kind().name)) is kind


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EnergyDivergence", "Unknown divergence 'EnergyDivergence'. Available: ChiSquare, Energy"),
        ("Reny", "Did you mean Renyi"),
        ("Renyi(beta=2)", "Renyi takes no 'beta'"),
    ],
)
def test_divergence_by_name_rejects_unknown_names_and_arguments(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        divergence_by_name(text)
    assert message in str(caught.value)
