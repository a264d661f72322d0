"""Small programs and their mutants.

A mutant is the source of a module with `model` and `guide`, one node of whose syntax tree has been
dropped, renamed, doubled or replaced; or the batch has another shape or type.
"""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

HEAD = """
import pyro
import torch
from pyro.distributions import *
from pyro.distributions import constraints
from pyro.infer import config_enumerate
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
"""

MEAN = """
def model(x):
    w = pyro.sample("w", Normal(0.0, 2.0))
    s = pyro.sample("s", LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(w, s), obs=x)

def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("w", Normal(loc, scale))
    t = pyro.param("t", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("s", Delta(t))
"""

FACTORS = """
class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(2, 3)
        self.log_scale = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", Normal(self.decoder(z), self.log_scale.exp()).to_event(1), obs=x)

class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 4)

    def forward(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(loc, log_scale.exp()).to_event(1))

torch.manual_seed(0)
model, guide = Model(), Guide()
"""

REGRESSION = """
def model(x, y):
    w = pyro.sample("w", Normal(torch.zeros(2), 1.0).to_event(1))
    b = pyro.sample("b", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", Bernoulli(logits=x @ w + b), obs=y)

def guide(x, y):
    loc = pyro.param("loc", torch.zeros(2))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    pyro.sample("w", Normal(loc, scale).to_event(1))
    b = pyro.param("b_loc", torch.tensor(0.0))
    pyro.sample("b", Normal(b, 0.3))
"""

MIXTURE = """
@config_enumerate
def model(x):
    weights = pyro.param("weights", torch.ones(3) / 3, constraint=constraints.simplex)
    locs = pyro.param("locs", torch.tensor([-1.0, 0.0, 1.0]))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", Categorical(weights))
        pyro.sample("x", Normal(locs[k], 0.5), obs=x)

def guide(x):
    pass
"""

COUNTS = """
def model(x):
    rate = pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x), dim=-1):
        g = pyro.sample("g", Gamma(2.0, rate))
        pyro.sample("x", Poisson(g), obs=x)

def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.param("a", lambda: torch.ones(len(x)), constraint=constraints.positive)
        pyro.sample("g", Gamma(a, 1.0))
"""

SCHOOLS = """
def model(x):
    mu = pyro.sample("mu", Normal(0.0, 5.0))
    tau = pyro.sample("tau", HalfNormal(2.0))
    with pyro.plate("columns", 3, dim=-1):
        theta = pyro.sample("theta", Normal(mu, tau))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("x", Normal(theta, 1.0), obs=x)

def guide(x):
    m = pyro.param("m", torch.zeros(4))
    s = pyro.param("s", torch.full((5,), 0.5), constraint=constraints.positive)
    pyro.sample("mu", Normal(m[0], s[0]))
    pyro.sample("tau", LogNormal(0.0, s[1]))
    with pyro.plate("columns", 3, dim=-1):
        pyro.sample("theta", Normal(m[1:4], s[2:5]))
"""

BITS = """
class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))
        self.net = nn.Linear(2, 3)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            b = pyro.sample("b", Bernoulli(logits=self.logits).to_event(1))
            pyro.sample("x", Bernoulli(logits=self.net(b)).to_event(1), obs=x)

class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("b", Bernoulli(logits=self.net(x)).to_event(1))

torch.manual_seed(0)
model, guide = Model(), Guide()
"""

CHAIN = """
def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = torch.zeros(len(x))
        for t in range(2):
            z = pyro.sample(f"z_{t}", Normal(0.9 * z, 1.0))
            pyro.sample(f"x_{t}", Normal(z, 0.5), obs=x[:, t])

guide = None
"""

BETA = """
class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.a = PyroParam(torch.tensor(2.0), constraint=constraints.positive)
        self.p = PyroSample(lambda self: Beta(self.a, 2.0))

    def forward(self, x):
        p = self.p
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Bernoulli(p), obs=x)

model, guide = Model(), None
"""

_ROWS = torch.tensor([[0.3, -1.2, 0.8], [1.1, 0.4, -0.2], [-0.7, 0.9, 0.1], [0.2, -0.3, 1.5]])
_ROWS = torch.cat([_ROWS, _ROWS.flip(0) * 0.7 + 0.1])
_X = _ROWS[:, 0].contiguous()
_SIGNS = (_ROWS > 0).float()

PROGRAMS: dict[str, tuple[str, tuple[Tensor, ...]]] = {
    "mean": (MEAN, (_X,)),
    "factors": (FACTORS, (_ROWS,)),
    "regression": (REGRESSION, (_ROWS[:, :2].contiguous(), _SIGNS[:, 2].contiguous())),
    "mixture": (MIXTURE, (_X,)),
    "counts": (COUNTS, (torch.tensor([0.0, 2.0, 1.0, 5.0, 3.0, 0.0, 1.0, 2.0]),)),
    "schools": (SCHOOLS, (_ROWS,)),
    "bits": (BITS, (_SIGNS,)),
    "chain": (CHAIN, (_ROWS[:, :2].contiguous(),)),
    "beta": (BETA, (_SIGNS[:, 0].contiguous(),)),
}
ATTRIBUTES = {"zeros": "zeroes", "sample": "smaple", "to_event": "to_events", "exp": "expp"}
DISTRIBUTIONS = {"Normal": "Bernoulli", "Gamma": "Normal", "Bernoulli": "Poisson"}
DISTRIBUTIONS |= {"Categorical": "OneHotCategorical", "LogNormal": "Beta", "Poisson": "Gamma"}
DISTRIBUTIONS |= {"HalfNormal": "Normal", "Delta": "Normal", "Beta": "Gamma"}
CONSTRAINTS = {"positive": "real", "simplex": "positive"}


@dataclass(frozen=True)
class Mutant:
    """A program with one fault.

    Attributes:
        name: the program and the fault.
        source: text of a module with `model` and `guide`.
        batch: its arguments.
    """

    name: str
    source: str
    batch: tuple[Tensor, ...]


def mutants() -> Iterator[Mutant]:
    """The programs, each with every fault; the first of a program is without."""
    for program, (source, batch) in PROGRAMS.items():
        yield Mutant(program, HEAD + source, batch)
        seen = {ast.unparse(ast.parse(source))}
        for fault, text in _faults(source):
            if text not in seen:
                seen.add(text)
                yield Mutant(f"{program}: {fault}", f"{HEAD}\n{text}\n", batch)
        for fault, other in _batches(batch):
            yield Mutant(f"{program}: {fault}", HEAD + source, other)


def _faults(source: str) -> Iterator[tuple[str, str]]:
    """Name of a fault and the text with it, for every node that can have it."""
    tree = ast.parse(source)
    for node in list(ast.walk(tree)):
        line = getattr(node, "lineno", 0)
        for fault in _changes(node):
            yield f"{fault} at line {line}", ast.unparse(tree)


def _changes(node: ast.AST) -> Iterator[str]:
    """Change the node in place, once for each name yielded, and back."""
    if isinstance(node, ast.FunctionDef | ast.With | ast.For):
        yield from _statements(node)
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.Attribute):
        for names in (ATTRIBUTES, CONSTRAINTS):
            if node.attr in names:
                old, node.attr = node.attr, names[node.attr]
                yield f"{old} becomes {node.attr}"
                node.attr = old
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        yield from _names(node)
    elif isinstance(node, ast.BinOp):
        old_op = node.op
        for op in (ast.Sub(), ast.MatMult(), ast.Div()):
            node.op = op
            yield f"{type(old_op).__name__} becomes {type(op).__name__}"
        node.op = old_op


def _statements(node: ast.FunctionDef | ast.With | ast.For) -> Iterator[str]:
    body = node.body
    for i, statement in enumerate(body):
        node.body = body[:i] + body[i + 1 :] or [ast.Pass()]
        yield f"statement {i} is missing"
        node.body = [*body[: i + 1], copy.deepcopy(statement), *body[i + 1 :]]
        yield f"statement {i} is there twice"
        if isinstance(statement, ast.With):
            node.body = [*body[:i], *statement.body, *body[i + 1 :]]
            yield f"with {i} is missing"
        if i + 1 < len(body):
            node.body = [*body[:i], body[i + 1], statement, *body[i + 2 :]]
            yield f"statements {i} and {i + 1} are swapped"
    node.body = body


def _calls(node: ast.Call) -> Iterator[str]:
    arguments, keywords, function = node.args, node.keywords, node.func
    for i in range(len(arguments)):
        node.args = arguments[:i] + arguments[i + 1 :]
        yield f"argument {i} is missing"
    if len(arguments) > 1:
        node.args = [arguments[1], arguments[0], *arguments[2:]]
        yield "two arguments are swapped"
    node.args = arguments
    for i in range(len(keywords)):
        node.keywords = keywords[:i] + keywords[i + 1 :]
        yield f"{keywords[i].arg} is missing"
        node.keywords = [*keywords[:i], ast.keyword(f"{keywords[i].arg}s", keywords[i].value)]
        yield f"{keywords[i].arg} is misspelled"
    node.keywords = keywords
    if isinstance(function, ast.Attribute):
        yield from _replaced(node, function.value, f".{function.attr}() is missing")
    for wrap in ("long", "double", "unsqueeze", "isnan", "detach", "item"):
        inner = ast.Call(function, arguments, keywords)
        extra: list[ast.expr] = [ast.Constant(-1)] if wrap == "unsqueeze" else []
        node.func, node.args, node.keywords = ast.Attribute(inner, wrap, ast.Load()), extra, []
        yield f".{wrap}() is added"
    node.func, node.args, node.keywords = function, arguments, keywords


def _replaced(node: ast.Call, value: ast.expr, fault: str) -> Iterator[str]:
    """A call x.f(...) as x alone."""
    if isinstance(value, ast.Call):
        saved = node.func, node.args, node.keywords
        node.func, node.args, node.keywords = value.func, value.args, value.keywords
        yield fault
        node.func, node.args, node.keywords = saved


def _constants(node: ast.Constant) -> Iterator[str]:
    old = node.value
    others: tuple[object, ...] = ()
    if isinstance(old, str):
        others = (f"{old}2", "x", "")
    elif isinstance(old, bool) or old is None:
        others = ()
    elif isinstance(old, int):
        others = (old + 1, old - 1, -old, 0, float(old), 10**6)
    elif isinstance(old, float):
        others = (-old, 0.0, 1e39, 1e-320, "nan", int(old), "text")
    for other in others:
        node.value = other  # type: ignore[assignment]
        if other == "nan":
            node.value = float("1e999")  # written as 1e309, infinity
        if node.value != old or type(node.value) is not type(old):
            yield f"{old!r} becomes {node.value!r}"
    node.value = old


def _names(node: ast.Name) -> Iterator[str]:
    old = node.id
    others = [f"{old}_"]
    if old in DISTRIBUTIONS:
        others.append(DISTRIBUTIONS[old])
    if old == "x":
        others += ["x[:1]", "x[0]", "x.T", "x.long()", "x * float('nan')", "(x - 9.0)"]
    for other in others:
        node.id = other
        yield f"{old} becomes {other}"
    node.id = old


def _batches(batch: tuple[Tensor, ...]) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Batches of other shapes and types."""
    for i, part in enumerate(batch):
        others = {
            "with a last dimension of 1": part.unsqueeze(-1),
            "of whole numbers": part.long(),
            "of double precision": part.double(),
            "of bits": part > 0,
            "with NaN": part.clone().index_fill_(0, torch.tensor([2]), float("nan")),
            "with a huge value": part.clone().index_fill_(0, torch.tensor([2]), 1e30),
            "of one row": part[:1],
            "of negative values": -part - 1.0,
            "of wider rows": torch.cat([part, part], -1) if part.dim() > 1 else part.repeat(2),
            "of rows as columns": part.mT if part.dim() > 1 else part[None],
        }
        for name, other in others.items():
            yield f"argument {i} {name}", (*batch[:i], other, *batch[i + 1 :])
