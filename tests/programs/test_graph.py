"""Graph of a known model: sites, plates and edges."""

import re
import stat
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_lvm.programs.graph import as_dot, as_text, draw
from ppl_lvm.programs.signatures import signature


def _topics(x: Tensor) -> None:
    pi = pyro.sample("pi", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("topics", 4, dim=-2):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(pi), infer={"enumerate": "parallel"})
        with pyro.plate("labels", 2, dim=-2):
            pyro.sample('a "count"', dist.Poisson(rate.squeeze(-1)[k] + 1))
        pyro.sample("x", dist.Normal(k.float(), 1.0), obs=x)


TEXT = """pi ~ Dirichlet
topics (4)
    rate ~ Gamma
data (5)
    k ~ Categorical            <- pi
    labels (2)
        a "count" ~ Poisson    <- rate, k
    x ~ Normal, seen           <- k"""


def test_as_text_indents_sites_by_their_plates() -> None:
    text = as_text(signature(_topics, torch.zeros(5)))
    assert [line.split() for line in text.splitlines()] == [
        line.split() for line in TEXT.splitlines()
    ]
    assert "        a" in text


def test_as_dot_has_every_site_once_and_every_edge() -> None:
    model_signature = signature(_topics, torch.zeros(5))
    dot = as_dot(model_signature)
    nodes = re.findall(r'^ +"((?:[^"\\]|\\.)+)" \[label', dot, re.MULTILINE)
    assert sorted(nodes) == sorted(["pi", "rate", "k", r"a \"count\"", "x"])
    edges = re.findall(r'^  "((?:[^"\\]|\\.)+)" -> "((?:[^"\\]|\\.)+)";', dot, re.MULTILINE)
    assert set(edges) == {("pi", "k"), ("rate", r"a \"count\""), ("k", r"a \"count\""), ("k", "x")}
    assert re.findall(r'subgraph "([^"]+)"', dot) == [
        "cluster topics",
        "cluster data",
        "cluster data labels",
    ]
    assert dot.count("{") == dot.count("}")
    assert dot.count("style=filled") == 1


def test_draw_writes_dot_and_calls_graphviz_if_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_signature = signature(_topics, torch.zeros(5))
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing there yet
    assert draw(model_signature, tmp_path / "model.png") == tmp_path / "model.dot"
    assert (tmp_path / "model.dot").read_text() == as_dot(model_signature)
    program = tmp_path / "dot"
    program.write_text(
        '#!/bin/sh\n[ "$1" = -Tpng ] || { echo "no format" >&2; exit 1; }\n'
        'while read -r line; do echo "$line"; done > "$3"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert draw(model_signature, tmp_path / "other.png") == tmp_path / "other.png"
    assert "digraph model" in (tmp_path / "other.png").read_text()
    with pytest.raises(ValueError, match=r"cannot draw .*model.pong: no format"):
        draw(model_signature, tmp_path / "model.pong")


def test_unknown_dependencies_are_a_question_mark() -> None:
    model_signature = signature(_topics, torch.zeros(5))
    sites = tuple(
        type(site)(**{**vars(site), "depends_on": None}) for site in model_signature.sites
    )
    assert "x ~ Normal, seen         <- ?" in as_text(
        type(model_signature)(sites, model_signature.plates, ())
    )
