"""Label-free numbers that tell whether a representation has collapsed."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """Computes the effective rank of a feature matrix, between 1 and min(N, K).

    With the singular values s of the matrix, not centred:

        p_i = s_i / sum(s) + eps,   RankMe = exp(-sum_i p_i log p_i)

    Source: Garrido et al. 2023, arXiv 2210.02885, Eq. 1.

    Args:
        features: (N, K) embeddings; N should be well above K, 10,000 rows where there are.
        eps: added to the normalised singular values.

    Returns:
        The effective rank; nan for fewer than 2 rows or where a feature is not finite.
    """
    if len(features) < 2 or not bool(features.isfinite().all()):
        return math.nan
    singular = torch.linalg.svdvals(features.float())
    p = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny) + eps
    return torch.exp(-(p * p.log()).sum()).item()


def feature_std(features: Tensor) -> float:
    """Computes the mean over channels of the standard deviation of the unit-length embeddings.

    About 1 / sqrt(K) where embeddings spread over the sphere, 0 where all are the same. The
    standard deviation is that of the population: sum_d std_d^2 = 1 - |mean|^2.

    Source: SimSiam (Chen & He 2021), section 4.1.

    Args:
        features: (N, K) embeddings of any length.

    Returns:
        The mean standard deviation; nan for fewer than 2 rows.
    """
    if len(features) < 2:
        return math.nan
    return F.normalize(features.float(), dim=1).std(dim=0, correction=0).mean().item()


def spatial_moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Reduces token maps to what `spatial_variance_ratio` needs, image by image.

    Args:
        maps: (B, C, h, w) token maps.

    Returns:
        (B,) the variance over the positions, summed over channels, and (B, C) the mean token.
    """
    tokens = maps.flatten(2).float()
    mean = tokens.mean(2)
    return (tokens - mean[..., None]).square().mean(2).sum(1), mean


def spatial_variance_ratio(within: Tensor, mean: Tensor) -> float:
    """Computes which part of the variance of tokens lies within images, between 0 and 1.

    Equals the ratio for the pooled tokens of all images, by the law of total variance, provided
    that all maps have the same size.

    Args:
        within: (N,) variance over positions per image.
        mean: (N, C) mean token per image.

    Returns:
        The ratio: 0 where every map is constant in space, the trivial solution of an equivariance
        loss; nan for fewer than 2 images or where nothing varies at all.
    """
    if len(within) < 2:
        return math.nan
    inside = within.double().mean()
    between = mean.double().var(dim=0, correction=0).sum()
    return (inside / (inside + between)).item()


def token_spatial_variance(maps: Tensor) -> float:
    """Computes the variance of tokens over positions divided by their total variance.

    Source: the early alarm for the trivial solution of SER appendix A.4.

    Args:
        maps: (N, C, h, w) token maps of N images.

    Returns:
        The ratio, as `spatial_variance_ratio`.
    """
    return spatial_variance_ratio(*spatial_moments(maps))
