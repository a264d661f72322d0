"""The programs that `packages.py` measures."""

from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_lvm.benchmarks.package_suite import examples, installed
from ppl_lvm.benchmarks.package_suite.base import Fit, PackageProgram


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _bits(*size: int) -> Tensor:
    return (torch.rand(*size, generator=_generator()) < 0.3).to(torch.get_default_dtype())


def topics() -> Fit:
    """Pyro's LDA."""
    program = examples.TopicModel(topics=8, words=100, documents=200)
    data = torch.randint(100, (24, 200), generator=_generator())
    return Fit(program.model, program.guide, TraceEnum_ELBO(max_plate_nesting=2), (data, 32))


def semi_supervised(labeled: bool = False) -> Fit:
    """Pyro's SS-VAE on images without labels."""
    program = examples.SemiSupervised(196, 10, 10, 64)
    x = _bits(64, 196)
    guide = config_enumerate(program.guide, "parallel", expand=True)
    y = one_hot(torch.arange(64) % 10, 10).to(x.dtype) if labeled else None
    return Fit(program.model, guide, TraceEnum_ELBO(max_plate_nesting=1), (x, y))


def annotated_cells() -> Fit:
    """SCANVI of Pyro's examples on cells without labels."""
    program = examples.AnnotatedCells(100, 4, 10, 32)
    x = torch.poisson(torch.full((64, 100), 2.0), generator=_generator())
    guide = config_enumerate(program.guide, "parallel", expand=True)
    return Fit(program.model, guide, TraceEnum_ELBO(max_plate_nesting=1), (x,))


def air() -> Fit:
    """Pyro's AIR."""
    program = examples.AttendInferRepeat(16, 8, 10, 64)
    return Fit(program.model, program.guide, TraceGraph_ELBO(), (_bits(32, 16, 16),))


def deep_markov(packed: bool = False) -> Fit:
    """Pyro's DMM."""
    program = examples.GatedMarkovModel(20, 8, 32, packed)
    x, lengths = _bits(16, 12, 20), torch.full((16,), 12)
    mask = torch.ones(16, 12).bool()
    return Fit(program.model, program.guide, Trace_ELBO(), (x, x.flip(1), mask, lengths, 1.0))


def deep_markov_packed() -> Fit:
    """Pyro's DMM with packed sequences."""
    return deep_markov(True)


def strains() -> Fit:
    """pyro-cov."""
    generator = _generator()
    features = (torch.rand(30, 20, generator=generator) < 0.3).to(torch.get_default_dtype())
    counts = torch.poisson(torch.full((8, 10, 30), 3.0), generator=generator)
    sites: Any = {name: LocScaleReparam() for name in ("rate_loc", "init_loc", "rate", "init")}
    model = pyro.poutine.reparam(examples.strain_growth, config=sites)
    args = torch.linspace(-1, 1, 8), features, counts
    return Fit(model, AutoNormal(model, init_scale=0.01), Trace_ELBO(), args)


PROGRAMS = {
    "AmortizedLDA": PackageProgram("scvi-tools", installed.amortized_lda),
    "Decipher": PackageProgram("scvi-tools", installed.decipher),
    "cell2location": PackageProgram("cell2location", installed.cell2location),
    "CellBender": PackageProgram("cellbender", installed.cellbender, 1e-4),
    "MuVI": PackageProgram("muvi", installed.muvi),
    "iVAE": PackageProgram("pyroved", installed.ivae),
    "rVAE": PackageProgram("pyroved", installed.rvae),
    "VED": PackageProgram("pyroved", installed.ved),
    "TyXe BNN": PackageProgram("tyxe", installed.bayesian_network),
    "counterfactual": PackageProgram("chirho", installed.counterfactual),
    "pyro-cov": PackageProgram("formulas of the paper", strains),
    "SCANVI": PackageProgram("formulas of the paper", annotated_cells),
    "SS-VAE": PackageProgram("formulas of the paper", semi_supervised),
    "AIR": PackageProgram("formulas of the paper", air),
    "LDA": PackageProgram("formulas of the paper", topics),
    "DMM": PackageProgram("formulas of the paper", deep_markov),
    "DMM, packed": PackageProgram("formulas of the paper", deep_markov_packed),
}
