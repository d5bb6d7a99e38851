"""InfoNCE over tokens whose negatives come from other images, in memory linear in the images."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits held at once, as float32: of 10 to 60 MB measured fastest on a CPU with 32 MB of cache.
BLOCK_BYTES = 40 * 10**6


def token_info_nce(
    anchors: Tensor,
    candidates: Tensor,
    first: int,
    temperature: float,
    block_bytes: int = BLOCK_BYTES,
    valid: Tensor | None = None,
) -> Tensor:
    """Contrasts each anchor token with the candidate at its place and those of other images.

    Source: SER, equivariance loss. The naive loop, with s(q, k) = q @ k / temperature:

        for image i, token t:                       # anchor q = anchors[i, t]
            positive = s(q, candidates[first + i, t])
            negatives = [s(q, k) for all tokens k of candidates[m], m != first + i]
            loss += -positive + log(exp(positive) + sum(exp(negatives)))
        return loss / (B * T)

    With `valid`, tokens that are not valid are left out as anchors, positives and negatives, and
    the sum is divided by the mean number of valid anchors of a rank: averaged over ranks, that is
    the mean over all valid anchors. Where nothing is valid the loss is 0.

    The other tokens of the anchor's own image are left out. Gradients are computed blockwise in
    the forward pass, so the logits of all pairs never exist at once: peak memory is linear in the
    number of images. Products are taken in the tensors' dtype, the softmax in float32 (float64
    for float64); there is no second derivative. With a single image the loss is exactly 0.

    Args:
        anchors: (B, T, D) unit vectors, this rank's images.
        candidates: (M, T, D) unit vectors of the same dtype, all ranks' images.
        first: the image in `candidates` that belongs to `anchors[0]`.
        temperature: tau, divides the cosine similarities.
        block_bytes: size of a block of logits; a block has at least one image's anchors.
        valid: (M, T) bool, which candidates, and anchors at their places, count; null for all.

    Returns:
        () the mean over anchors, float32 or float64.

    Raises:
        ValueError: if shapes or dtypes do not fit together, or temperature is not positive.
    """
    _check(anchors, candidates, first, temperature, valid)
    enabled = torch.is_grad_enabled()  # a Function sees requires_grad even under no_grad
    wanted = tuple(enabled and tensor.requires_grad for tensor in (anchors, candidates))
    loss: Tensor = _TokenInfoNCE.apply(
        anchors, candidates, first, temperature, block_bytes, valid, wanted
    )
    return loss


class _TokenInfoNCE(torch.autograd.Function):
    """The loss is a scalar, so its backward only scales gradients known in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        first: int,
        temperature: float,
        block_bytes: int,
        valid: Tensor | None,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        tensors = anchors.contiguous(), candidates.contiguous()
        with torch.autocast(anchors.device.type, enabled=False):
            losses, *gradients = _losses_and_gradients(
                *tensors, first, temperature, block_bytes, valid, *wanted
            )
        ctx.save_for_backward(*gradients)
        if valid is None:
            ctx.scale = 1 / (temperature * losses.numel())
            return losses.mean()
        share = len(anchors) / len(candidates)
        number = (share * valid.sum(dtype=losses.dtype)).clamp_min(share)
        ctx.scale = 1 / (temperature * number)
        return losses.sum() / number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradient * ctx.scale
        grads = [
            None if saved is None else (saved.to(scale.dtype) * scale).to(saved.dtype)
            for saved in ctx.saved_tensors
        ]
        return (*grads, None, None, None, None, None)


def _losses_and_gradients(
    anchors: Tensor,
    candidates: Tensor,
    first: int,
    temperature: float,
    block_bytes: int,
    valid: Tensor | None,
    want_anchors: bool,
    want_candidates: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Losses (B, T), and gradients times `temperature` of their sum, of order 1 for float16."""
    num_images, num_tokens, dim = anchors.shape
    dtype, precise = anchors.dtype, torch.promote_types(anchors.dtype, torch.float32)
    # Without the candidates' mean the softmax is the same, and so are all gradients: it adds one
    # constant to all logits of an anchor. But bfloat16 products of tokens that are all alike,
    # as at the start of training, no longer round away the differences between them.
    centre = candidates.mean((0, 1), dtype=precise)
    keys = (candidates - centre).to(dtype).view(-1, dim)  # (N, D)
    invalid = None if valid is None else ~valid
    step = min(num_images, max(1, block_bytes // (4 * num_tokens * len(keys))))
    products = keys.new_empty(step * num_tokens, len(keys))
    softmax = products if dtype == precise else torch.empty_like(products, dtype=precise)
    losses = keys.new_empty(num_images, num_tokens, dtype=precise)
    grad_anchors = torch.empty_like(anchors) if want_anchors else None
    grad_candidates = _CandidateGradient(anchors, candidates) if want_candidates else None
    for start in range(0, num_images, step):
        block = slice(start, min(start + step, num_images))
        own = slice(first + block.start, first + block.stop)
        queries = anchors[block].to(precise) / temperature  # (g, T, D)
        own_keys = candidates[own] - centre
        rows = queries.shape[0] * num_tokens
        product = torch.mm(queries.to(dtype).view(rows, dim), keys.T, out=products[:rows])
        weights = product if softmax is products else softmax[:rows].copy_(product)
        # The positive in full precision: of all logits, its rounding weighs most.
        positive = (queries * own_keys).sum(-1)
        losses[block], misplaced = _softmax_(
            weights.view(*positive.shape, -1), positive, own, invalid
        )
        # d loss / d logit is the probability of a negative, and -misplaced for the positive.
        if grad_candidates is not None:
            grad_candidates.add_mass(weights, misplaced, own)
        if want_anchors or want_candidates:
            weights = weights if softmax is products else product.copy_(weights)
        if grad_anchors is not None:
            grad_anchors[block] = torch.mm(weights, keys).view_as(own_keys) - misplaced * own_keys
        if grad_candidates is not None:
            grad_candidates.add_product(weights, misplaced, own, anchors[block])
    pushed = None if grad_candidates is None else grad_candidates.result()
    return losses, grad_anchors, pushed


class _CandidateGradient:
    """Sums d loss / d logit times anchor over the blocks, for each candidate, in full precision.

    The anchors' mean is set apart, as the candidates' is in the logits: it is multiplied by the
    sum of a candidate's derivatives, its mass, which is summed before they are rounded.
    """

    def __init__(self, anchors: Tensor, candidates: Tensor) -> None:
        precise = torch.promote_types(candidates.dtype, torch.float32)
        self.dtype = candidates.dtype
        self.centre = anchors.mean((0, 1), dtype=precise)
        self.total = torch.zeros_like(candidates, dtype=precise)  # (M, T, D)
        self.mass = self.total.new_zeros(candidates.shape[:2])

    def add_mass(self, weights: Tensor, misplaced: Tensor, own: slice) -> None:
        self.mass += weights.sum(0).view_as(self.mass)
        self.mass[own] -= misplaced.squeeze(-1)

    def add_product(self, weights: Tensor, misplaced: Tensor, own: slice, anchors: Tensor) -> None:
        total = self.total.flatten(0, 1)
        queries = anchors - self.centre
        self.total[own] -= misplaced * queries
        queries = queries.to(self.dtype).flatten(0, 1)
        if total.dtype == self.dtype:
            total.addmm_(weights.T, queries)
        else:
            total += torch.mm(weights.T, queries)

    def result(self) -> Tensor:
        self.total.flatten(0, 1).addr_(self.mass.flatten(), self.centre)
        return self.total.to(self.dtype)


def _softmax_(
    logits: Tensor, positive: Tensor, own: slice, invalid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Turns logits in place into probabilities of the negatives; the positive's place becomes 0.

    Logits (g, T, N) of all pairs of a block and (g, T) of the positives; the rows belong to the g
    `own` images among the N / T candidates. The losses (g, T), and the probability that is not on
    the positive (g, T, 1): summed, not a difference from 1, it keeps its digits when it is small.
    All of them are 0 for anchors that are `invalid`, (N / T, T).
    """
    num_tokens = logits.shape[1]
    if invalid is not None:
        logits.masked_fill_(invalid.flatten(), -torch.inf)
    own_pairs = logits.unflatten(2, (-1, num_tokens))[:, :, own].diagonal(dim1=0, dim2=2)
    own_pairs.fill_(-torch.inf)  # (T, T, g)
    own_pairs.diagonal(dim1=0, dim2=1).copy_(positive)  # (g, T)
    peak = logits.amax(-1)
    torch.softmax(logits, dim=-1, out=logits)
    # The largest probability is exp(peak - logsumexp), and at least 1 / N: never rounded to 0.
    losses = (peak - positive) - logits.amax(-1).log()
    own_pairs.fill_(0)
    if invalid is not None:
        losses = losses.masked_fill(invalid[own], 0)
        logits.masked_fill_(invalid[own][..., None], 0)
    return losses, logits.sum(-1, keepdim=True)


def _check(
    anchors: Tensor, candidates: Tensor, first: int, temperature: float, valid: Tensor | None
) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be positive; the paper uses 0.3 to 0.5")
    if anchors.dim() != 3 or candidates.dim() != 3 or anchors.shape[1:] != candidates.shape[1:]:
        raise ValueError(
            f"anchors {tuple(anchors.shape)} and candidates {tuple(candidates.shape)} must be "
            "(images, tokens, channels) with equal tokens and channels; carry the candidates to "
            "the anchors' frame first"
        )
    if anchors.dtype != candidates.dtype:
        raise ValueError(
            f"anchors are {anchors.dtype}, candidates {candidates.dtype}; cast one of them"
        )
    if not 0 <= first <= len(candidates) - len(anchors) or not len(anchors):
        raise ValueError(
            f"{len(anchors)} anchor images from image {first} on do not lie within the "
            f"{len(candidates)} candidate images; gather the candidates of every rank"
        )
    if valid is not None and (valid.dtype != torch.bool or valid.shape != candidates.shape[:2]):
        raise ValueError(
            f"valid is {valid.dtype} of shape {tuple(valid.shape)} for candidates of shape "
            f"{tuple(candidates.shape)}; give one bool for each of their tokens"
        )
