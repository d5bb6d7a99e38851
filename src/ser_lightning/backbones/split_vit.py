"""A timm ViT cut in two: a prefix that ends in a token map, a suffix that ends in an embedding."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ser_lightning.backbones.attention import choose_attention, is_plain_block
from ser_lightning.backbones.compiled import compiled
from ser_lightning.backbones.packed import (
    Output,
    Packed,
    Run,
    in_a_row,
    pack,
    run_again,
    run_block,
    run_cls_block,
)
from ser_lightning.backbones.tokens import (
    drop_cls_position,
    embed,
    grid_of,
    handed_out,
    join_cls,
    with_cls_position,
)
from ser_lightning.backbones.vit import (
    CLSLayer,
    Layer,
    PositionEmbedding,
    WeightInit,
    block_numbers,
    build_vit,
    require_layers,
    resolve_cls_layer,
)
from ser_lightning.backbones.weights import (
    load_vit,
    read_arguments,
    refuse_non_finite,
    write_safetensors,
)
from ser_lightning.batch import TapFeatures
from ser_lightning.foreign import Branch
from ser_lightning.numbers import PositiveInt, checked


@checked
class SplitViT(nn.Module):
    """A ViT whose token map after block `layer` is handed out on the way to its [CLS] embedding.

    With `cls_layer` 0, [CLS] stands at the input with a position embedding of its own, and
    `forward` is timm's. With a later `cls_layer`, [CLS] joins after that block without position
    embedding; plain timm then computes another embedding from the same weights. `layer` equal to
    the depth means the patch tokens after the final norm. Register tokens stand behind [CLS] at the
    input; no token map has them.

    Source: SER section 3.3 and appendix A.
    Differs: the patch embedding of the MoCo-v3 flavour has MoCo-v3's own bound, uniform in
    +-sqrt(6 / (3 p^2 + C)), where the paper's public code freezes PyTorch's default; freezing a
    default initialisation has no stated reason.

    Attributes:
        vit: the timm model, with timm's parameter names.
        width: channels C of tokens and embedding.
        depth: number of blocks.
        layer: number of blocks before the token map.
        layers: the same for each of several maps, in increasing order; the first one is `layer`.
        cls_layer: number of blocks before [CLS] joins.
        first_with_cls: the least number of blocks after which [CLS] is there.
        grid: (h, w) tokens of a square image of `image_size`.
        num_registers: of register tokens.
        weights: the file that it started from.
        compiles: whether blocks run through `torch.compile`; set by `Objective`.
    """

    def __init__(
        self,
        name: str = "vit_small_patch16_224",
        image_size: PositiveInt = 224,
        layer: Layer | list[Layer] = 3,
        cls_layer: CLSLayer = "auto",
        patch_size: PositiveInt | None = None,
        vit_options: dict[str, Any] | None = None,
        weight_init: WeightInit = "moco",
        position_embedding: PositionEmbedding = "learned",
        freeze_patch_embed: bool = True,
        weights: str | None = None,
        cls_only_last_block: bool = True,
        grad_checkpointing: bool = False,
    ) -> None:
        """Builds the model, and reads `weights` when given.

        Args:
            name: timm's name of a plain ViT with one class token, with registers or without.
            image_size: pixels, side of the square that the position embedding is made for.
            layer: number of blocks before the token map, 0 (after the position embedding) to the
                depth (after the final norm). A float in [0, 1] is a fraction of the depth, rounded
                to the nearest block: 0.25 is 3 of 12 and 6 of 24. A list names several, for
                add-ons at each of them.
            cls_layer: number of blocks before [CLS] joins. "auto" is `layer` (of several, the
                first; 0 for the depth), and 0 in a ser-fit run without an add-on, which has no
                reason to wait. null is `layer` there too, as in version 0.1.0.
            patch_size: side of a patch in pixels; default: the named model's.
            vit_options: further arguments of timm's VisionTransformer (embed_dim, depth,
                num_heads, drop_path_rate, ...), and norm_eps, the epsilon of its norms.
            weight_init: "moco" as MoCo-v3 does; "" for truncated normals as DINO and Barlow Twins
                do; or timm's "jax".
            position_embedding: "learned", or "sincos" for MoCo-v3's fixed one, which is frozen.
            freeze_patch_embed: whether the patch embedding stays as it is, as in MoCo-v3.
            weights: file to start from: a checkpoint of this project, or weights in the layout of
                timm, torchvision, DeiT, DINO, DINOv2, MSN, MoCo-v3, MAE, solo-learn, lightly,
                mmpretrain, Hugging Face, CLIP or SER's public code. Its position embedding takes
                the place of a fixed one, and is frozen like it.
            cls_only_last_block: compute only [CLS] in the last block, where nothing else is used;
                the same embedding for less work.
            grad_checkpointing: keep only what enters each block, and compute the block again in
                the backward pass: the same gradients with less memory, for a third more work.

        Raises:
            ValueError: if the arguments do not fit each other, or the file does not fit them.
        """
        super().__init__()
        options = dict(vit_options or {})
        self.arguments: dict[str, Any] = dict(
            name=name,
            image_size=image_size,
            layer=layer,
            patch_size=patch_size,
            vit_options=options,
            weight_init=weight_init,
            position_embedding=position_embedding,
            freeze_patch_embed=freeze_patch_embed,
            cls_only_last_block=cls_only_last_block,
        )
        self.weights = weights
        self.compiles = False
        self.grad_checkpointing = grad_checkpointing  # no argument of what is computed
        self.vit: Any = build_vit(
            name, image_size, patch_size, options, weight_init, position_embedding
        )
        self.width: int = self.vit.embed_dim
        self.depth = len(self.vit.blocks)
        self.image_size = image_size
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self.grid: tuple[int, int] = self.vit.patch_embed.grid_size
        self.layers = block_numbers(layer, self.depth)
        self.layer = self.layers[0]
        self.cls_layer = resolve_cls_layer(cls_layer, self.layer, self.depth)
        self.arguments["cls_layer"] = self.cls_layer
        self.first_with_cls = self.cls_layer + (self.cls_layer > 0)
        self.num_registers: int = self.vit.num_reg_tokens
        if self.cls_layer > 0:
            drop_cls_position(self.vit)
        self.vit.patch_embed.requires_grad_(not freeze_patch_embed)
        self._cls_only = cls_only_last_block and is_plain_block(self.vit.blocks[-1])
        self._fusable = [m for m in self.vit.modules() if getattr(m, "fused_attn", False)]
        if weights is not None:
            load_vit(self.vit, weights)
            refuse_non_finite(self.vit, weights)

    @classmethod
    def from_safetensors(cls, path: str | Path) -> "SplitViT":
        """A backbone that `export_safetensors` wrote, arguments and weights.

        Raises:
            ValueError: if the file has no record of the arguments.
        """
        return cls.from_checkpoint(path)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, branch: Branch = "online", **changed: Any
    ) -> "SplitViT":
        """A run's backbone from its checkpoint, arguments and weights.

        Args:
            path: the checkpoint.
            branch: the trained backbone, or its momentum copy (DINO's teacher).
            changed: arguments in place of the run's, such as `image_size`.

        Raises:
            ValueError: if the checkpoint does not say how to rebuild it, or has no such branch.
        """
        stored = read_arguments(path, cls.__name__)
        try:
            model = cls(**stored | changed | {"weights": None})
        except TypeError as error:
            if changed.keys() - stored.keys():  # it may be one of these that is unknown
                raise
            raise ValueError(f"{path} describes a backbone of another kind: {error}") from error
        load_vit(model.vit, path, branch)
        return model

    @override
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, C) [CLS] embeddings."""
        embedding = self.encode([images])[0][1]
        assert embedding is not None
        return embedding

    def encode(
        self, images: Sequence[Tensor], num_without_embedding: int = 0
    ) -> list[tuple[tuple[TapFeatures, ...], Tensor | None]]:
        """`prefixes` and embeddings of images of several shapes, all in one pass.

        Args:
            images: groups of (B, 3, H, W), sides of whole patches.
            num_without_embedding: of the last groups, which end after the deepest layer.

        Returns:
            The prefixes and the (B, C) embeddings of each group; None for those without.
        """
        found, tokens = self._walk(images, self.layers)
        num_whole = len(images) - num_without_embedding
        shapes = tokens.shapes[:num_whole]
        rows = sum(count * length for count, length in shapes)
        if self.layers[-1] == self.depth:
            embeddings = [prefixes[-1].cls for prefixes in found[:num_whole]]
        else:
            embedding = self._finish(Packed(tokens.tokens[:rows], shapes))
            embeddings = list(embedding.split([count for count, _ in shapes]))
        return list(zip(found, [*embeddings, *[None] * num_without_embedding], strict=True))

    def prefixes(self, images: Tensor, layers: Sequence[int] = ()) -> tuple[TapFeatures, ...]:
        """What there is after each of the backbone's layers, shallowest first, or of those named.

        Args:
            images: (B, 3, H, W), sides of whole patches; the position embedding is resampled to
                the grid (bicubic, not antialiased) and stays upright.
            layers: as `walk` takes them.

        Returns:
            The token map (B, C, H / patch size, W / patch size) after each, and [CLS] if it has
            joined.

        Raises:
            ValueError: if a side is not a multiple of the patch size.
        """
        return self.walk([images], layers or self.layers)[0]

    def walk(
        self, images: Sequence[Tensor], layers: Sequence[int]
    ) -> list[tuple[TapFeatures, ...]]:
        """Token maps, and [CLS] where it has joined, after some blocks, all in one pass.

        Args:
            images: groups of (B, 3, H, W), sides of whole patches.
            layers: numbers of blocks, in any order; 0 is after the position embedding, the depth
                after the final norm, where `cls` is the embedding.

        Returns:
            For each group what there is after each of the layers.

        Raises:
            ValueError: if a layer is not a whole number in 0..depth.
        """
        require_layers(layers, 0, self.depth)
        return self._walk(images, layers)[0]

    def token_maps(self, images: Tensor, layers: Sequence[int]) -> tuple[Tensor, ...]:
        """Maps (B, C, h, w) of the patch tokens after several blocks, as `walk` for one group."""
        return tuple(prefix.tokens for prefix in self.walk([images], layers)[0])

    def cls_tokens(self, images: Tensor, layers: Sequence[int]) -> tuple[Tensor, ...]:
        """[CLS] (B, C) after several blocks, each through the final norm, in one pass.

        Args:
            images: (B, 3, H, W), sides of whole patches.
            layers: numbers of blocks, each beyond `cls_layer`; the depth gives the embedding.

        Raises:
            ValueError: if [CLS] has not joined by one of the layers.
        """
        require_layers(layers, self.first_with_cls, self.depth)
        found: Any = zip(layers, self.walk([images], layers)[0], strict=True)
        return tuple(
            prefix.cls if layer == self.depth else self.vit.norm(prefix.cls)
            for layer, prefix in found
        )

    def timm_state_dict(self) -> dict[str, Tensor]:
        """The weights as a state dict that loads strictly into the plain timm model.

        With a later `cls_layer` than 0 the position entry of the class token is zero, and plain
        timm, which puts [CLS] at the input, computes ANOTHER embedding: use `from_safetensors` to
        keep this one.
        """
        state: dict[str, Tensor] = {n: value.clone() for n, value in self.vit.state_dict().items()}
        return with_cls_position(state) if self.cls_layer > 0 else state

    def export_safetensors(self, path: str | Path, preparation: str | None = None) -> None:
        """Writes the weights under timm's names, with what `from_safetensors` needs to rebuild.

        `preparation` says how images are prepared, as JSON, to travel with the weights.
        """
        write_safetensors(path, self.vit.state_dict(), self.arguments, preparation)

    def _walk(
        self, images: Sequence[Tensor], layers: Sequence[int]
    ) -> tuple[list[tuple[TapFeatures, ...]], Packed]:
        """Token maps and [CLS] of every group after some numbers of blocks, and the last tokens."""
        grids = [grid_of(group, self.patch_size) for group in images]
        packed = pack([self._embed(*each) for each in zip(images, grids, strict=True)])
        found = {}
        for number in range(max(layers) + 1):
            if number > 0:
                packed = self._computed(run_block, packed, number - 1)
            if number in layers:
                is_last = number == self.depth
                final = packed._replace(tokens=self.vit.norm(packed.tokens)) if is_last else packed
                has_cls = number >= self.first_with_cls
                groups = zip(final.groups, grids, strict=True)
                found[number] = [handed_out(tokens, grid, has_cls) for tokens, grid in groups]
        return list(zip(*(found[layer] for layer in layers), strict=True)), packed

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        if not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype}; give floats, normalised as the backbone was trained"
            )
        images = images.to(self.vit.pos_embed.dtype)  # for weights in half precision
        choose_attention(self._fusable, images, self.vit.cls_token)
        return embed(self.vit, images, grid, has_cls=self.cls_layer == 0)

    def _finish(self, packed: Packed) -> Tensor:
        """The blocks after the deepest layer and the final norm: (sum of n, C) embeddings."""
        last = self.depth - 1
        for index in range(self.layers[-1], last):
            packed = self._computed(run_block, packed, index)
        if self._cls_only:
            cls = self._computed(run_cls_block, packed, last)
        else:
            groups = self._computed(run_block, packed, last).groups
            cls = in_a_row([group[:, 0] for group in groups])
        normed: Tensor = self.vit.norm(cls)
        return normed

    def _computed(self, run: Run[Output], packed: Packed, index: int) -> Output:
        """The output of block `index` (from 0), before which [CLS] joins if it is its first one.

        Only the block's input is kept where activations are not.
        """
        if 0 < index == self.cls_layer:
            packed = pack([join_cls(self.vit, group) for group in packed.groups])
        block = self.vit.blocks[index]
        run = compiled(run) if self.compiles else run
        is_again = self.grad_checkpointing and torch.is_grad_enabled()
        return run_again(run, block, packed) if is_again else run(block, packed)
