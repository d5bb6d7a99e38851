"""What the first blocks of a ViT hand to the regularizer."""

from typing import NamedTuple

from torch import Tensor


class Prefix(NamedTuple):
    """What the first blocks hand to the regularizer.

    Attributes:
        tokens: (B, C, h, w) map of the patch tokens after block `layer`.
        cls: (B, C) the [CLS] token beside them; None when it joins later.
    """

    tokens: Tensor
    cls: Tensor | None

    @classmethod
    def of(cls, tokens: Tensor, grid: tuple[int, int], has_cls: bool) -> "Prefix":
        """What (B, h*w, C) tokens, or these after a [CLS] and registers, hand out."""
        num_others = tokens.shape[1] - grid[0] * grid[1]
        patches = tokens[:, num_others:] if num_others else tokens
        tokens_map = patches.transpose(1, 2).unflatten(2, grid)
        return cls(tokens_map, tokens[:, 0] if has_cls else None)
