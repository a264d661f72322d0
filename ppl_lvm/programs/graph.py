"""Graph of a model as text, DOT or picture.

>>> import pyro, torch
>>> from pyro.distributions import Normal
>>> from ppl_lvm.programs.signatures import signature
>>> def model(x):
...     w = pyro.sample("w", Normal(0.0, 1.0))
...     with pyro.plate("data", len(x), dim=-1):
...         z = pyro.sample("z", Normal(w, 1.0))
...         pyro.sample("x", Normal(z, 1.0), obs=x)
>>> print(as_text(signature(model, torch.zeros(5))))
w ~ Normal
data (5)
    z ~ Normal        <- w
    x ~ Normal, seen  <- z
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ppl_lvm.programs.signatures import Signature, Site


def as_text(declared: Signature) -> str:
    """One line per site, indented by its plates, with the sites it depends on."""
    lines: list[tuple[str, str]] = []
    open_plates: tuple[str, ...] = ()
    for site in declared.sites:
        common = _common_plates(open_plates, site.plates)
        for depth in range(common, len(site.plates)):
            name = site.plates[depth]
            lines.append((f"{'    ' * depth}{name} ({declared.plate(name).full_size})", ""))
        open_plates = site.plates
        seen = ", seen" if site.observed else ""
        text = f"{'    ' * len(site.plates)}{site.name} ~ {site.distribution}{seen}"
        lines.append((text, _parents(site)))
    width = max((len(text) for text, parents in lines if parents), default=0)
    return "\n".join(
        f"{text:<{width}}  <- {parents}" if parents else text for text, parents in lines
    )


def as_dot(declared: Signature) -> str:
    """The graph in DOT: plates are boxes, observed sites are gray."""
    inside = "\n".join(_boxes(declared, list(declared.sites), 0, ()))
    edges = "\n".join(
        f"  {_quoted(parent)} -> {_quoted(site.name)};"
        for site in declared.sites
        for parent in site.depends_on or ()
    )
    return f"digraph model {{\n{inside}\n{edges}\n}}\n"


def draw(declared: Signature, path: Path) -> Path:
    """Write the graph to `path`: DOT for .dot, otherwise in the suffix's format by Graphviz.

    Without Graphviz, DOT is written with suffix .dot. The path of the file is returned.

    Raises:
        ValueError: for a format that Graphviz does not support.
    """
    text = as_dot(declared)
    executable = shutil.which("dot")
    if path.suffix in ("", ".dot", ".gv") or executable is None:
        path = path if path.suffix in (".dot", ".gv") else path.with_suffix(".dot")
        path.write_text(text)
        return path
    process = subprocess.run(
        [executable, f"-T{path.suffix[1:]}", "-o", str(path)],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise ValueError(f"Graphviz cannot draw {path}: {process.stderr.strip().splitlines()[0]}")
    return path


def _common_plates(before: tuple[str, ...], after: tuple[str, ...]) -> int:
    """Number of plates, outermost first, that stay open."""
    same = [a == b for a, b in zip(before, after, strict=False)]
    return same.index(False) if False in same else len(same)


def _parents(site: Site) -> str:
    return "?" if site.depends_on is None else ", ".join(site.depends_on)


def _boxes(
    declared: Signature, sites: list[Site], depth: int, path: tuple[str, ...]
) -> Iterator[str]:
    """Nodes of the sites in no further plate, then a box for each further plate."""
    indent = "  " * (depth + 1)
    for site in sites:
        if len(site.plates) == depth:
            label = _quoted(f"{site.name}\n{site.distribution}")
            gray = ', style=filled, fillcolor="grey90"' if site.observed else ""
            yield f"{indent}{_quoted(site.name)} [label={label}{gray}];"
    deeper = [site for site in sites if len(site.plates) > depth]
    for name in dict.fromkeys(site.plates[depth] for site in deeper):
        plate, here = declared.plate(name), (*path, name)
        yield f"{indent}subgraph {_quoted('cluster ' + ' '.join(here))} {{"
        yield f"{indent}  label={_quoted(f'{name} ({plate.full_size})')}; labeljust=r; labelloc=b;"
        inside = [site for site in deeper if site.plates[depth] == name]
        yield from _boxes(declared, inside, depth + 1, here)
        yield f"{indent}}}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
