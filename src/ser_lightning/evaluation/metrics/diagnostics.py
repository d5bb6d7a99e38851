"""Label-free numbers that tell whether a representation has collapsed."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """The effective rank of a feature matrix, between 1 and min(N, K).

    With the singular values s of the matrix, not centred:

        p_i = s_i / sum(s) + eps,   RankMe = exp(-sum_i p_i log p_i)

    Source: Garrido et al. 2023, arXiv 2210.02885, Eq. 1.

    N should be well above K, 10,000 rows where there are. Nan for fewer than 2 rows or where a
    feature is not finite.
    """
    if len(features) < 2 or not bool(features.isfinite().all()):
        return math.nan
    singular = torch.linalg.svdvals(features.float())
    return _effective_rank(singular, eps)


def feature_std(features: Tensor) -> float:
    """The mean over channels of the standard deviation of the unit-length embeddings.

    About 1 / sqrt(K) where embeddings spread over the sphere, 0 where all are the same. The
    standard deviation is that of the population: sum_d std_d^2 = 1 - |mean|^2.

    Source: SimSiam (Chen & He 2021), section 4.1.

    Nan for fewer than 2 rows.
    """
    if len(features) < 2:
        return math.nan
    return F.normalize(features.float(), dim=1).std(dim=0, correction=0).mean().item()


def lidar(views: Tensor, delta: float = 1e-4, eps: float = 1e-8) -> float:
    """The effective rank of what tells images apart, against what views of one change.

    With the mean mu_i of the q views z_ij of image i, and the mean mu of all:

        S_b = 1/(n-1) sum_i (mu_i - mu)(mu_i - mu)^T
        S_w = 1/(n(q-1)) sum_ij (z_ij - mu_i)(z_ij - mu_i)^T + delta I
        lambda = eigenvalues of S_w^-1/2 S_b S_w^-1/2
        p_k = lambda_k / sum(lambda) + eps,   LiDAR = exp(-sum_k p_k log p_k)

    Source: Thilak et al. 2023, arXiv 2312.04000.

    Of (n, q, K) embeddings of q views of n images; n should be above K. Between 1 and
    min(K, n - 1); nan for fewer than 2 images or views, or where an embedding is not finite.
    Computed in double precision on the CPU.
    """
    num_images, num_views, width = views.shape
    if num_images < 2 or num_views < 2 or not bool(views.isfinite().all()):
        return math.nan
    views = views.double().cpu()
    mean = views.mean(1)
    between = (mean - mean.mean(0)) / math.sqrt(num_images - 1)
    within = (views - mean[:, None]).flatten(0, 1) / math.sqrt(num_images * (num_views - 1))
    scatter = within.T @ within + delta * torch.eye(width, dtype=torch.float64)
    # S_w = L L^T; L^-1 S_b L^-T has the eigenvalues of S_w^-1/2 S_b S_w^-1/2, which are the squared
    # singular values of the whitened, centred means.
    factor = torch.linalg.cholesky(scatter)
    whitened = torch.linalg.solve_triangular(factor, between.T, upper=False)
    spectrum = torch.linalg.svdvals(whitened).square()
    spectrum = torch.cat([spectrum, spectrum.new_zeros(width - len(spectrum))])
    return _effective_rank(spectrum, eps)


def alignment(first: Tensor, second: Tensor, alpha: float = 2) -> float:
    """The mean distance between unit-length embeddings of two views, to a power.

        E || z(x) - z(x+) ||_2^alpha,   between 0 and 2^alpha; 0 is perfect invariance

    Source: Wang & Isola 2020, arXiv 2005.10242, Eq. 2.

    Of (N, K) embeddings of any length; nan for fewer than 2 images.
    """
    if len(first) < 2:
        return math.nan
    first, second = (F.normalize(z.double().cpu(), dim=1) for z in (first, second))
    return (first - second).norm(dim=1).pow(alpha).mean().item()


def uniformity(features: Tensor, t: float = 2) -> float:
    """How evenly unit-length embeddings fill the sphere; lower is more evenly.

        log E_{i != j} exp(-t || z_i - z_j ||^2),   between -4t and 0; 0 where all are the same

    Source: Wang & Isola 2020, arXiv 2005.10242, Eq. 3.

    Of (N, K) embeddings of any length; the memory grows with N^2, 4,096 take 0.4 GB. Nan for fewer
    than 2 rows.
    """
    num_rows = len(features)
    if num_rows < 2:
        return math.nan
    unit = F.normalize(features.double().cpu(), dim=1)
    exponent = (unit @ unit.T - 1) * (2 * t)  # ||a - b||^2 = 2 - 2 a.b for unit vectors
    exponent.fill_diagonal_(-math.inf)
    return (exponent.flatten().logsumexp(0) - math.log(num_rows * (num_rows - 1))).item()


def spatial_moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Reduces (B, C, h, w) token maps to what `spatial_variance_ratio` needs, image by image.

    Returns:
        (B,) the variance over the positions, summed over channels, and (B, C) the mean token.
    """
    tokens = maps.flatten(2).float()
    mean = tokens.mean(2)
    return (tokens - mean[..., None]).square().mean(2).sum(1), mean


def spatial_variance_ratio(within: Tensor, mean: Tensor) -> float:
    """Which part of the variance of tokens lies within images, between 0 and 1.

    Equals the ratio for the pooled tokens of all images, by the law of total variance, provided
    that all maps have the same size. Source: the early alarm for the trivial solution of SER
    appendix A.4.

    Of the results of `spatial_moments`. 0 where every map is constant in space, the trivial
    solution of an equivariance loss; nan for fewer than 2 images or where nothing varies at all.
    """
    if len(within) < 2:
        return math.nan
    inside = within.double().mean()
    between = mean.double().var(dim=0, correction=0).sum()
    return (inside / (inside + between)).item()


def _effective_rank(spectrum: Tensor, eps: float) -> float:
    p = spectrum / spectrum.sum().clamp_min(torch.finfo(spectrum.dtype).tiny) + eps
    return torch.exp(-(p * p.log()).sum()).item()
