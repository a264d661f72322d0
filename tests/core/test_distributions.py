"""Distributions and supports under their wrappers."""

import torch
from pyro.distributions import (
    Delta,
    ExpandedDistribution,
    LogNormal,
    Normal,
    ZeroInflatedPoisson,
    constraints,
)

from ppl_lvm.core.distributions import (
    added_event_dims,
    family,
    innermost,
    is_point,
    own_masks,
    unwrap,
    unwrap_support,
)


def test_unwrap_removes_dimensions_masks_and_expansion() -> None:
    base = Normal(torch.zeros(3), 1.0)
    wrapped = base.mask(torch.ones(3).bool()).to_event(1)
    assert unwrap(ExpandedDistribution(wrapped, torch.Size([2]))) is base


def test_unwrap_stops_at_transforms_and_mixtures_and_innermost_does_not() -> None:
    log_normal = LogNormal(torch.zeros(3), 1.0).to_event(1)
    assert family(log_normal) == "LogNormal"
    assert type(innermost(log_normal)) is Normal
    assert family(ZeroInflatedPoisson(torch.ones(3), gate=torch.tensor(0.5))) == (
        "ZeroInflatedPoisson"
    )


def test_added_event_dims_counts_every_to_event() -> None:
    fn = Normal(torch.zeros(2, 3, 4), 1.0)
    assert added_event_dims(fn) == 0
    assert added_event_dims(fn.to_event(1).to_event(1)) == 2


def test_own_masks_are_those_of_every_layer() -> None:
    inner, outer = torch.tensor([[True, False]]), torch.tensor([False])
    fn = Normal(torch.zeros(1, 2), 1.0).mask(inner).to_event(1).mask(outer)
    assert [mask.tolist() for mask in own_masks(fn)] == [[False], [[True, False]]]
    assert list(own_masks(Normal(0.0, 1.0).mask(False))) == []


def test_is_point_sees_through_wrappers() -> None:
    assert is_point(Delta(torch.zeros(3)).to_event(1))
    assert not is_point(Normal(torch.zeros(3), 1.0).to_event(1))


def test_unwrap_support_is_the_constraint_of_single_values() -> None:
    nested = constraints.independent(constraints.independent(constraints.positive, 1), 1)
    assert unwrap_support(nested) is constraints.positive
    assert unwrap_support(None) is None
