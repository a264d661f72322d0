"""Named data sets of scikit-learn, and seeded generators.

    iris  wine  breast_cancer  digits(binarize=8)
    moons(n=500, noise=0.1, seed=0)  blobs(...)  swiss_roll(...)  pinwheel(...)
    eight_schools  grouped(n=200, groups=8)  bars(n=500, size=5, length=100)

The arguments of a call are literals; nothing is evaluated.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le

from ppl_lvm.core.call_syntax import build, parse_call
from ppl_lvm.core.messages import unknown
from ppl_lvm.core.types import Array
from ppl_lvm.core.validate import Count, NonNegative, Seed


@dataclass(frozen=True)
class NamedSet:
    """Values (N, ...) and their description.

    `labels` (N,) are classes, or a position along a curve; the model must not see them.
    """

    values: Array
    columns: tuple[str, ...] | None = None
    labels: Array | None = None
    image_shape: tuple[int, int] | None = None


def iris() -> NamedSet:
    """150 flowers (150, 4) in centimeters, labeled by species. Fisher (1936)."""
    return _from_sklearn("iris")


def wine() -> NamedSet:
    """178 chemical analyses (178, 13), labeled by cultivar."""
    return _from_sklearn("wine")


def breast_cancer() -> NamedSet:
    """569 cell nuclei (569, 30), labeled malignant or benign."""
    return _from_sklearn("breast_cancer")


def digits(binarize: Annotated[float, Gt(0), Le(16)] | None = None) -> NamedSet:
    """1,797 handwritten digits (1797, 64) with ink 0 to 16, labeled 0 to 9.

    With `binarize` a pixel is 1 where its ink is at least that much, else 0.
    """
    gray = _from_sklearn("digits")
    values = gray.values
    if binarize is not None:
        values = (values >= binarize).astype(np.float64)
    return NamedSet(values, gray.columns, gray.labels, image_shape=(8, 8))


def moons(n: Count = 500, noise: NonNegative = 0.1, seed: Seed = 0) -> NamedSet:
    """Two interleaved half circles (n, 2)."""
    from sklearn.datasets import make_moons

    values, labels = make_moons(n, noise=noise, random_state=seed)
    return NamedSet(values, ("x1", "x2"), labels)


def blobs(
    n: Count = 500,
    components: Count = 3,
    dimensions: Count = 2,
    noise: NonNegative = 1.0,
    seed: Seed = 0,
) -> NamedSet:
    """Round Gaussian clouds (n, dimensions) with standard deviation `noise`."""
    from sklearn.datasets import make_blobs

    values, labels = make_blobs(
        n, n_features=dimensions, centers=components, cluster_std=noise, random_state=seed
    )
    return NamedSet(values, tuple(f"x{d + 1}" for d in range(dimensions)), labels)


def swiss_roll(n: Count = 500, noise: NonNegative = 0.1, seed: Seed = 0) -> NamedSet:
    """A rolled-up sheet (n, 3); the labels are the position along the roll."""
    from sklearn.datasets import make_swiss_roll

    values, position = make_swiss_roll(n, noise=noise, random_state=seed)
    return NamedSet(values, ("x1", "x2", "x3"), position)


def pinwheel(
    n: Count = 500, components: Count = 5, noise: NonNegative = 0.1, seed: Seed = 0
) -> NamedSet:
    """Curved arms around the origin (n, 2).

    A point of arm k starts at (r, t) with r ~ N(1, 0.3²) along the arm and t ~ N(0, noise²)
    across it. Rotation by the angle 2πk/components + ¼ eʳ bends the arm outwards.

    Reference:
        Johnson, Duvenaud, Wiltschko, Datta, Adams (2016). Composing graphical models with
        neural networks for structured representations and fast inference.
        https://arxiv.org/abs/1603.06277 (figure 1; with other parameters)
    """
    rng = np.random.default_rng(seed)
    k = np.arange(n) % components  # (n,)
    r = 1 + 0.3 * rng.standard_normal(n)  # (n,)
    t = noise * rng.standard_normal(n)  # (n,)
    angle = 2 * np.pi * k / components + 0.25 * np.exp(r)  # (n,)
    x1 = r * np.cos(angle) - t * np.sin(angle)
    x2 = r * np.sin(angle) + t * np.cos(angle)
    return NamedSet(np.stack([x1, x2], axis=1), ("x1", "x2"), k)


def eight_schools() -> NamedSet:
    """Coaching for a test in eight schools (8, 2), labeled by school.

    The columns are the estimated effect, in points, and its standard error.

    Reference:
        Rubin (1981). Estimation in parallel randomized experiments.
        https://doi.org/10.3102/10769986006004377, table 1.
    """
    effect = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
    error = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
    schools = np.array(list("ABCDEFGH"))
    return NamedSet(np.stack([effect, error], axis=1), ("effect", "standard_error"), schools)


def grouped(
    n: Count = 200, groups: Count = 8, noise: NonNegative = 0.5, seed: Seed = 0
) -> NamedSet:
    """One regression line per group (n, 3): group, x, and y = a_g + b_g x + noise.

    a_g ~ N(1, 1) and b_g ~ N(2, ½²). Group g has about 1 / (g + 1) as many rows as group 0, so
    the last groups are informed mostly by the others.
    """
    rng = np.random.default_rng(seed)
    share = 1 / (1 + np.arange(groups))
    g = np.sort(rng.choice(groups, size=n, p=share / share.sum()))
    g[:groups] = np.arange(groups) if n >= groups else g[:groups]  # every group has a row
    a, b = 1 + rng.standard_normal(groups), 2 + 0.5 * rng.standard_normal(groups)
    x = rng.standard_normal(n)
    y = a[g] + b[g] * x + noise * rng.standard_normal(n)
    return NamedSet(np.stack([g.astype(np.float64), x, y], axis=1), ("group", "x", "y"))


def bars(n: Count = 500, size: Count = 5, length: Count = 100, seed: Seed = 0) -> NamedSet:
    """Documents with known topics (n, size²): counts of words on a square grid.

    The topics are the rows and the columns of the grid, uniform over their words. A document has
    topic proportions ~ Dirichlet(1, …, 1) and `length` words. Its label is its most frequent
    topic; topics that are rows come first.

    Reference:
        Griffiths, Steyvers (2004). Finding scientific topics.
        https://doi.org/10.1073/pnas.0307752101, figure 1.
    """
    rng = np.random.default_rng(seed)
    grid = np.eye(size)[:, :, None].repeat(size, 2)  # topic, row, column
    topics = np.concatenate([grid, grid.transpose(0, 2, 1)]).reshape(2 * size, -1) / size
    theta = rng.dirichlet(np.ones(2 * size), n)
    counts = rng.multinomial(length, theta @ topics).astype(np.float64)
    columns = tuple(f"row{r + 1}column{c + 1}" for r in range(size) for c in range(size))
    return NamedSet(counts, columns, theta.argmax(1), image_shape=(size, size))


NAMED: dict[str, Callable[..., NamedSet]] = {
    function.__name__: function
    for function in (
        *(iris, digits, wine, breast_cancer, eight_schools),
        *(moons, blobs, swiss_roll, pinwheel, grouped, bars),
    )
}


def call(text: str) -> NamedSet:
    """Build the set for `name` or `name(key=literal, ...)`.

    Raises:
        ValueError: for an unknown name or argument, a positional argument, or a value that is
            not a literal of the right kind.
    """
    name, settings = parse_call(text)
    if name not in NAMED:
        raise ValueError(unknown("data set", name, NAMED))
    return build(NAMED[name], settings=settings, what=name)


def _from_sklearn(name: str) -> NamedSet:
    """A scikit-learn set with its classes by name.

    To import scikit-learn takes longer than to train a small mixture, so its file is read here.
    """
    file, columns = _FILES[name]
    spec = importlib.util.find_spec("sklearn")
    path = Path((spec and spec.origin) or "").parent / "datasets" / "data" / file
    if not path.exists():  # another version of scikit-learn
        import sklearn.datasets

        bunch = getattr(sklearn.datasets, f"load_{name}")()
        names = np.array([str(name) for name in bunch.target_names])
        return NamedSet(np.asarray(bunch.data, np.float64), columns, names[bunch.target])
    heading = not file.endswith(".gz")
    table = np.loadtxt(path, delimiter=",", skiprows=int(heading))  # the class stands last
    if heading:
        with path.open() as lines:
            names = np.array(next(lines).strip().split(",")[2:])
    else:
        names = np.arange(10).astype(str)
    return NamedSet(table[:, :-1].copy(), columns, names[table[:, -1].astype(int)])


_CELL = (
    *("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity"),
    *("concave points", "symmetry", "fractal dimension"),
)
_FILES = {  # scikit-learn's file and the names of the columns
    "iris": (
        "iris.csv",
        ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"),
    ),
    "wine": (
        "wine_data.csv",
        (
            *("alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols"),
            *("flavanoids", "nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue"),
            *("od280/od315_of_diluted_wines", "proline"),
        ),
    ),
    "breast_cancer": (
        "breast_cancer.csv",
        (
            *(f"mean {name}" for name in _CELL),
            *(f"{name} error" for name in _CELL),
            *(f"worst {name}" for name in _CELL),
        ),
    ),
    "digits": ("digits.csv.gz", tuple(f"pixel_{i}_{j}" for i in range(8) for j in range(8))),
}
