"""Data by name: what scikit-learn ships, and generators with a seed.

    iris  wine  breast_cancer  digits(binarize=8)
    moons(n=500, noise=0.1, seed=0)  blobs(...)  swiss_roll(...)  pinwheel(...)
    eight_schools  grouped(n=200, groups=8)  bars(n=500, size=5, length=100)

Each function returns a `Found`; the arguments of a call are literals, nothing is evaluated.
"""

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn.datasets

from ppl_lvm.data.validation import Array, suggest


@dataclass(frozen=True)
class Found:
    """What a reader found: values (N, ...), and what is known about them.

    `labels` (N,) are classes, or a position along a curve, that the model must not see.
    """

    values: Array
    columns: tuple[str, ...] | None = None
    labels: Array | None = None
    image_shape: tuple[int, int] | None = None


def iris() -> Found:
    """150 flowers (150, 4) in centimetres, labelled by species. Fisher (1936)."""
    return _shipped(sklearn.datasets.load_iris())


def wine() -> Found:
    """178 chemical analyses (178, 13), labelled by cultivar."""
    return _shipped(sklearn.datasets.load_wine())


def breast_cancer() -> Found:
    """569 cell nuclei (569, 30), labelled malignant or benign."""
    return _shipped(sklearn.datasets.load_breast_cancer())


def digits(binarize: float | None = None) -> Found:
    """1,797 handwritten digits (1797, 64) with ink 0 to 16, labelled 0 to 9.

    With `binarize` a pixel is 1 where its ink is at least that much, else 0.
    """
    found = _shipped(sklearn.datasets.load_digits())
    values = found.values
    if binarize is not None:
        if isinstance(binarize, bool) or not 0 < binarize <= 16:
            raise ValueError(f"digits: binarize={binarize!r} must be ink above 0 and at most 16.")
        values = (values >= binarize).astype(np.float64)
    return Found(values, found.columns, found.labels, image_shape=(8, 8))


def moons(n: int = 500, noise: float = 0.1, seed: int = 0) -> Found:
    """Two interleaved half circles (n, 2)."""
    values, labels = sklearn.datasets.make_moons(n, noise=noise, random_state=seed)
    return Found(values, ("x1", "x2"), labels)


def blobs(
    n: int = 500, components: int = 3, dimensions: int = 2, noise: float = 1.0, seed: int = 0
) -> Found:
    """Round Gaussian clouds (n, dimensions) with standard deviation `noise`."""
    values, labels = sklearn.datasets.make_blobs(
        n, n_features=dimensions, centers=components, cluster_std=noise, random_state=seed
    )
    return Found(values, tuple(f"x{d + 1}" for d in range(dimensions)), labels)


def swiss_roll(n: int = 500, noise: float = 0.1, seed: int = 0) -> Found:
    """A rolled-up sheet (n, 3); the labels are the position along the roll."""
    values, along = sklearn.datasets.make_swiss_roll(n, noise=noise, random_state=seed)
    return Found(values, ("x1", "x2", "x3"), along)


def pinwheel(n: int = 500, components: int = 5, noise: float = 0.1, seed: int = 0) -> Found:
    """Curved arms around the origin (n, 2).

    A point of arm k starts at (r, t) with r ~ N(1, 0.3²) along the arm and t ~ N(0, noise²)
    across it, and is turned by the angle 2πk/components + ¼ eʳ, so that the arm bends outwards.

    Reference:
        Johnson, Duvenaud, Wiltschko, Datta, Adams (2016). Composing graphical models with
        neural networks for structured representations and fast inference.
        https://arxiv.org/abs/1603.06277 (figure 1; parameters are ours)
    """
    draw = np.random.default_rng(seed)
    k = np.arange(n) % components  # (n,)
    r = 1 + 0.3 * draw.standard_normal(n)  # (n,)
    t = noise * draw.standard_normal(n)  # (n,)
    angle = 2 * np.pi * k / components + 0.25 * np.exp(r)  # (n,)
    x1 = r * np.cos(angle) - t * np.sin(angle)
    x2 = r * np.sin(angle) + t * np.cos(angle)
    return Found(np.stack([x1, x2], axis=1), ("x1", "x2"), k)


def eight_schools() -> Found:
    """Coaching for a test in eight schools (8, 2): estimated effect, in points, and its standard
    error; labelled by school.

    Reference:
        Rubin (1981). Estimation in parallel randomized experiments.
        https://doi.org/10.3102/10769986006004377, table 1.
    """
    effect = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
    error = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
    schools = np.array(list("ABCDEFGH"))
    return Found(np.stack([effect, error], axis=1), ("effect", "standard_error"), schools)


def grouped(n: int = 200, groups: int = 8, noise: float = 0.5, seed: int = 0) -> Found:
    """A line in each of some groups (n, 3): group, x, and y = a_g + b_g x + noise.

    a_g ~ N(1, 1) and b_g ~ N(2, ½²); group g has about 1 / (g + 1) as many rows as group 0, so
    that the last ones say little by themselves.
    """
    draw = np.random.default_rng(seed)
    share = 1 / (1 + np.arange(groups))
    g = np.sort(draw.choice(groups, size=n, p=share / share.sum()))
    g[:groups] = np.arange(groups) if n >= groups else g[:groups]  # every group has a row
    a, b = 1 + draw.standard_normal(groups), 2 + 0.5 * draw.standard_normal(groups)
    x = draw.standard_normal(n)
    y = a[g] + b[g] * x + noise * draw.standard_normal(n)
    return Found(np.stack([g.astype(np.float64), x, y], axis=1), ("group", "x", "y"))


def bars(n: int = 500, size: int = 5, length: int = 100, seed: int = 0) -> Found:
    """Documents with known topics (n, size²): counts of words on a square grid.

    The topics are the rows and the columns of the grid, each word of one equally likely. A
    document has proportions ~ Dirichlet(1, …, 1) of them and `length` words; its label is the
    topic it has most of, rows first.

    Reference:
        Griffiths, Steyvers (2004). Finding scientific topics.
        https://doi.org/10.1073/pnas.0307752101, figure 1.
    """
    draw = np.random.default_rng(seed)
    grid = np.eye(size)[:, :, None].repeat(size, 2)  # topic, row, column
    topics = np.concatenate([grid, grid.transpose(0, 2, 1)]).reshape(2 * size, -1) / size
    theta = draw.dirichlet(np.ones(2 * size), n)
    counts = draw.multinomial(length, theta @ topics).astype(np.float64)
    columns = tuple(f"row{r + 1}column{c + 1}" for r in range(size) for c in range(size))
    return Found(counts, columns, theta.argmax(1), image_shape=(size, size))


NAMED: dict[str, Callable[..., Found]] = {
    made.__name__: made
    for made in (
        *(iris, digits, wine, breast_cancer, eight_schools),
        *(moons, blobs, swiss_roll, pinwheel, grouped, bars),
    )
}


def call(text: str) -> Found:
    """Make the set that `name` or `name(key=literal, ...)` names.

    Raises:
        ValueError: for an unknown name or argument, a positional argument, or a value that is
            not a literal of the right kind.
    """
    name, arguments = parse_call(text)
    if name not in NAMED:
        raise ValueError(f"There is no data set {name!r}; {suggest(name, list(NAMED))}")
    known = inspect.signature(NAMED[name]).parameters
    for key, value in arguments.items():
        if key not in known:
            takes = suggest(key, list(known)) if known else "it takes no arguments."
            raise ValueError(f"{name} takes no argument {key!r}; {takes}")
        _check_argument(name, key, value)
    return NAMED[name](**arguments)


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Split `name(key=literal, ...)` without evaluating anything."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not of the form name(key=value, ...).") from error
    if isinstance(tree, ast.Name):
        return tree.id, {}
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise ValueError(f"{text!r} is not of the form name(key=value, ...).")
    if tree.args or any(word.arg is None for word in tree.keywords):
        raise ValueError(f"{text!r}: name each argument, as in moons(n=500, noise=0.1).")
    arguments = {}
    for word in tree.keywords:
        try:
            arguments[str(word.arg)] = ast.literal_eval(word.value)
        except ValueError as error:
            raise ValueError(f"{text!r}: {word.arg} must be a plain number or text.") from error
    return tree.func.id, arguments


def _check_argument(name: str, key: str, value: object) -> None:
    """Sizes are whole and positive, seeds whole, noise not negative."""
    if key == "binarize":
        right = value is None or isinstance(value, (int, float))
        needs = "a number"
    elif key == "noise":
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
        needs = "a number, 0 or more"
    else:
        least = 0 if key == "seed" else 1
        right = isinstance(value, int) and not isinstance(value, bool) and value >= least
        needs = f"a whole number, {least} or more"
    if not right:
        raise ValueError(f"{name}: {key}={value!r} must be {needs}.")


def _shipped(bunch: Any) -> Found:
    """A scikit-learn set with its classes by name."""
    names = np.array([str(name) for name in bunch.target_names])
    columns = tuple(str(name) for name in bunch.feature_names)
    return Found(np.asarray(bunch.data, np.float64), columns, names[bunch.target])
