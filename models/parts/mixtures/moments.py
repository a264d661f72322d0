"""Starting values of mixtures: k-means clusters and their moments."""

import torch
from sklearn.cluster import KMeans
from torch import Tensor

# k-means uses at most this many rows: its centers are initial values only.
_START_ROWS = 50_000


def start_clusters(x: Tensor, components: int) -> Tensor:
    """k-means with k-means++ centers drawn by torch's generator: one-hot responsibilities (N, K).

    Raises:
        ValueError: for fewer distinct rows than components.
    """
    distinct = len(x[:_START_ROWS].unique(dim=0))
    if distinct < components:
        raise ValueError(
            f"{components} components need at least as many distinct rows, and the data has "
            f"{distinct} in {len(x)} rows. Use components={distinct} or fewer, or more data."
        )
    seed = int(torch.randint(2**31 - 1, ()))
    kmeans = KMeans(components, init="k-means++", n_init=1, random_state=seed)
    rows = torch.randperm(len(x))[:_START_ROWS] if len(x) > _START_ROWS else torch.arange(len(x))
    kmeans.fit(x[rows].detach().cpu().double().numpy())
    nearest = torch.from_numpy(kmeans.predict(x.detach().cpu().double().numpy())).long()
    return torch.nn.functional.one_hot(nearest, components).to(x)


def restart_clusters(x: Tensor, components: int, restart: int) -> Tensor:
    """Responsibilities (N, K) to begin restart number `restart` from, of four kinds in turn.

    k-means; the nearest of K random rows; random intervals along a random direction; random
    responsibilities. The second and third measure in units of the covariance, so that elongated
    clusters are found. Restart 0 is `start_clusters`.
    """
    kind = restart % 4
    if kind == 0 or components == 1:
        return start_clusters(x, components)
    if kind == 3:
        concentration = torch.full((components,), 0.3, dtype=torch.float64)
        return torch.distributions.Dirichlet(concentration).sample((len(x),)).to(x)
    rows = x.detach().double()
    rows = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(rows.mT @ rows / len(rows))
    whitened = rows @ vectors * values.clamp(min=1e-12 * float(values[-1])).rsqrt()
    if kind == 1:
        centers = whitened[torch.randperm(len(rows))[:components].to(rows.device)]
        nearest = torch.cdist(whitened, centers).argmin(1)
    else:
        direction = torch.randn(rows.shape[1], dtype=rows.dtype).to(rows)
        shares = torch.distributions.Dirichlet(torch.full((components,), 4.0)).sample()
        order = (whitened @ direction).argsort().argsort() / len(rows)
        nearest = torch.bucketize(order, shares.to(rows).cumsum(0)[:-1].contiguous(), right=True)
    return torch.nn.functional.one_hot(nearest, components).to(x)


def moments(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), means (K, P) and covariances (K, P, P) of rows `x` (N, P) weighted by `r`.

    In double precision, one component at a time: memory for N P numbers beside the result.
    """
    x, r = x.detach().double(), r.detach().double()
    rows = r.sum(0).clamp(min=torch.finfo(r.dtype).tiny)  # (K,)
    means = r.mT @ x / rows[:, None]
    scatter = torch.stack(
        [((x - means[k]) * r[:, k : k + 1]).mT @ (x - means[k]) / rows[k] for k in range(len(rows))]
    )
    return rows / rows.sum(), means, scatter


def shrunken_moments(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`moments` for initial values: small clusters borrow spread from the others.

    Each covariance is the cluster's own, averaged with P + 1 rows' worth of the pooled one, so that
    a cluster of few rows does not start collapsed.
    """
    weights, means, scatter = moments(x, r)
    pooled = torch.einsum("k,kpq->pq", weights, scatter)
    rows, borrowed = len(x) * weights[:, None, None], x.shape[1] + 1
    return weights, means, (rows * scatter + borrowed * pooled) / (rows + borrowed)
