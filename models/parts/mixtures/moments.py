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
