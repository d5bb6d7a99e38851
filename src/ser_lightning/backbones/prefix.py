"""What the first blocks of a ViT hand to the regularizer and to the blocks after them."""

from typing import NamedTuple

import torch
from torch import Tensor


class Prefix(NamedTuple):
    """What the prefix hands to the regularizer and to the suffix.

    Attributes:
        tokens: (B, C, h, w) map of the patch tokens after block `layer`.
        cls: (B, C) the [CLS] token beside them; None when it joins later, in the suffix.
        registers: (B, R, C) register tokens beside [CLS]; None in a ViT without.
    """

    tokens: Tensor
    cls: Tensor | None
    registers: Tensor | None = None

    @classmethod
    def of(cls, tokens: Tensor, grid: tuple[int, int], has_cls: bool) -> "Prefix":
        """What (B, h*w, C) tokens, or these after a [CLS] and registers, hand out."""
        num_others = tokens.shape[1] - grid[0] * grid[1]
        patches = tokens[:, num_others:] if num_others else tokens
        registers = tokens[:, 1:num_others] if num_others > 1 else None
        tokens_map = patches.transpose(1, 2).unflatten(2, grid)
        return cls(tokens_map, tokens[:, 0] if has_cls else None, registers)

    def sequence(self) -> Tensor:
        """The tokens in a row, (B, h*w, C), after [CLS] if it has joined, and registers."""
        tokens = self.tokens.flatten(2).transpose(1, 2)
        if self.cls is None:
            return tokens
        others = [self.cls.unsqueeze(1)] + ([] if self.registers is None else [self.registers])
        return torch.cat([*others, tokens], dim=1)
