"""What the first blocks of a ViT hand to the regularizer and to the blocks after them."""

from typing import NamedTuple

import torch
from torch import Tensor


class Prefix(NamedTuple):
    """What the prefix hands to the regularizer and to the suffix.

    Attributes:
        tokens: (B, C, h, w) map of the patch tokens after block `layer`.
        cls: (B, C) the [CLS] token beside them; None when it joins later, in the suffix.
    """

    tokens: Tensor
    cls: Tensor | None

    @classmethod
    def of(cls, tokens: Tensor, grid: tuple[int, int], has_cls: bool) -> "Prefix":
        """What (B, h*w, C) tokens, or these after a [CLS], hand out."""
        patches = tokens[:, 1:] if has_cls else tokens
        return cls(patches.transpose(1, 2).unflatten(2, grid), tokens[:, 0] if has_cls else None)

    def sequence(self) -> Tensor:
        """The tokens in a row, (B, h*w, C), after [CLS] if it has joined."""
        tokens = self.tokens.flatten(2).transpose(1, 2)
        return tokens if self.cls is None else torch.cat([self.cls.unsqueeze(1), tokens], dim=1)
