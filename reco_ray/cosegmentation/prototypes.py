"""Several prototypes per concept: k-means centres of the seeds instead of their mean."""

import torch
import torch.nn.functional as F

from reco_ray.cosegmentation.cosegment import Cosegmentation
from reco_ray.faiss_library import load_faiss


def prototypes(result: Cosegmentation, count: int) -> torch.Tensor:
    """Clusters the seeds by spherical k-means (Dhillon & Modha, 2001).

    The mean of different appearances, such as the front and the side of a bus, resembles none of them.

    Returns:
        The reference (c,) for a count of 1; else (count, c) unit rows, padded with the reference if there are too few
        seeds.
    """
    if count == 1:
        return result.reference
    seeds = F.normalize(result.seed_features.float(), dim=1).cpu()
    if len(seeds) <= count:
        return torch.cat([seeds, result.reference.cpu()[None].expand(count - len(seeds), -1)])
    options = {"spherical": True, "niter": 25, "seed": 0, "min_points_per_centroid": 1}
    kmeans = load_faiss().Kmeans(seeds.shape[1], count, **options)
    kmeans.train(seeds.numpy())
    return F.normalize(torch.from_numpy(kmeans.centroids), dim=1)
