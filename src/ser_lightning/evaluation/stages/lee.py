"""The lee stage: the local equivariance error of token maps and of the [CLS] embedding.

Source: Gruver et al. 2023 (arXiv 2210.02984).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.vit import Layer, block_numbers
from ser_lightning.batch import EvaluationBatch
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.distributed import gather
from ser_lightning.evaluation.full_precision import full_float32, refuse_half_weights
from ser_lightning.evaluation.metrics.equivariance import place_of
from ser_lightning.evaluation.metrics.lie_derivative import Derivative, lie_derivatives, mean_square
from ser_lightning.evaluation.per_image import per_image
from ser_lightning.evaluation.stage import Stage, StageResult
from ser_lightning.groups.generators import GENERATORS
from ser_lightning.numbers import PositiveInt, checked

# the names of `GENERATORS`
Generator = Literal[
    "translation_x", "translation_y", "rotation", "scale", "shear", "hyperbolic"
]  # fmt: skip


class LieErrors(NamedTuple):
    """How the outputs of a backbone follow the image: maps after some blocks, then the embedding.

    Attributes:
        errors: (G, places) mean over images of |L f|^2 / dim, for every transformation and output.
        changes: the same of the outputs' rate of change, without an action on them.
        spread: (places,) the same of the outputs' distance from the mean token, or embedding, of
            all images; nan where they do not differ.
        num_images: images over all ranks.
    """

    errors: Tensor
    changes: Tensor
    spread: Tensor
    num_images: int


def lie_errors(
    trainer: L.Trainer,
    backbone: SplitViT,
    loader: DataLoader,
    layers: Sequence[int],
    names: Sequence[str],
) -> LieErrors:
    """Differentiates the outputs of a backbone for the images of a loader; a collective call."""
    num_places = len(layers) + 1
    # the sums of the mean tokens and of the embedding, in double precision
    sums = torch.zeros(num_places, backbone.width, dtype=torch.float64)

    def outputs(images: Tensor) -> list[Tensor]:
        found = backbone.prefixes(images, sorted({*layers, backbone.depth}))
        cls = found[-1].cls
        assert cls is not None, "[CLS] joins before the last block"
        return [prefix.tokens for prefix in found[: len(layers)]] + [cls]

    def values(batch: EvaluationBatch) -> Tensor:
        columns: list[Tensor] = []
        found: list[Derivative] = []
        with torch.autocast(batch.pixels.device.type, enabled=False):
            for _, found in lie_derivatives(outputs, batch.pixels, names):
                columns += [mean_square(each.lie) for each in found]
                columns += [mean_square(each.change) for each in found]
        for total, each in zip(sums, found, strict=True):
            mean = each.output.reshape(*each.output.shape[:2], -1).mean(2)  # of a map's tokens
            total.add_(mean.double().sum(0).cpu())
        return torch.stack([*columns, *(mean_square(each.output) for each in found)], 1)

    width = (2 * len(names) + 1) * num_places
    rows = per_image(trainer, backbone, loader, width, values).values
    means = rows.double().mean(0)
    errors, changes = means[:-num_places].unflatten(0, (-1, 2, num_places)).unbind(1)
    centre = gather(sums[None]).sum(0) / len(rows)
    second = means[-num_places:]
    spread = second - centre.square().mean(1)
    spread = spread.where(spread > 1e-6 * second, torch.nan)  # below is rounding
    return LieErrors(errors, changes, spread, len(rows))


@checked
class LEEStage(Stage):
    """Measures the local equivariance error (LEE): how outputs fail to follow the image.

    The error is the Lie derivative L f(x) = d/dt g_t^-1 f(g_t x) at t = 0, by forward-mode
    differentiation. Metrics are `lee/<transformation>_<place>`, the paper's mean of
    |L f|^2 / dim, and `lee/relative/...`, that divided by the mean of |f - m|^2 / dim, with m the
    mean token or embedding of the set: of networks whose outputs have another scale, only the
    latter compare. Places are `cls`, the embedding, on which nothing acts, so that small is
    invariant; and maps after `block<n>`, or after the final norm, `final`, which are acted on like
    the image, so that small is equivariant. Companions, as in the equivariance stage: `random_init`
    and `random_init_relative` for fresh weights; `no_action`, relative, for how fast a map changes
    where none acts on it. In float32, whatever the precision of the trainer.

    Differs: the paper measures class probabilities, which a backbone without a head does not have.

    Args:
        checkpoint: file of a pretraining run.
        num_images: test images to use, the same number of each class; null takes all.
        layers: maps after which blocks; floats are fractions of the depth, and the depth is after
            the final norm. null takes all.
        transformations: which; units are in `groups/generators.py`.
        stage: further arguments of every stage.
    """

    name = "lee"
    title = "Local equivariance error"
    needs_labels = False
    figure = "ser_lightning.reporting.lee_figure:lee_figure"

    def __init__(
        self,
        checkpoint: str,
        num_images: PositiveInt | None = 1000,
        layers: list[Layer] | None = None,
        transformations: list[Generator] | None = None,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        self.num_images = num_images
        depth = self.backbone.depth
        self.layers = block_numbers(list(range(depth + 1)) if layers is None else layers, depth)
        self.transformations = list(dict.fromkeys(transformations or GENERATORS))

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        refuse_half_weights(trainer)
        data.setup("test")
        total = len(data.images("test"))
        num_images = total if self.num_images is None else min(self.num_images, total)
        with full_float32():
            trained, fresh = (
                lie_errors(
                    trainer,
                    backbone,
                    data.clean_loader("test", num_images),
                    self.layers,
                    self.transformations,
                )
                for backbone in (self.backbone, self.random_backbone())
            )
        part = [f"measured on {num_images} of {total} images"] if num_images < total else []
        return [
            self.result(
                data,
                self._metrics(trained, fresh),
                trained.num_images,
                feature={"token_maps_after_blocks": list(self.layers), "cls": "final norm"},
                protocol={
                    "num_images": num_images,
                    "transformations": self.transformations,
                    "differences": "central, as of bilinear sampling",
                    "precision": "float32",
                },
                reasons=part,
            )
        ]

    def _metrics(self, trained: LieErrors, fresh: LieErrors) -> dict[str, float]:
        """Names the values, those of the embedding first; ratios only where outputs differ."""
        rows = {
            "": trained.errors,
            "relative/": trained.errors / trained.spread,
            "no_action/": trained.changes / trained.spread,
            "random_init/": fresh.errors,
            "random_init_relative/": fresh.errors / fresh.spread,
        }
        places = [*(place_of(layer, self.backbone.depth) for layer in self.layers), "cls"]
        return {
            f"lee/{row}{name}_{place}": value
            for number, place in sorted(enumerate(places), reverse=True)
            for row, values in rows.items()
            for name, value in zip(self.transformations, values[:, number].tolist(), strict=True)
            if (row, place) != ("no_action/", "cls") and 0 <= value < float("inf")
        }
