"""The equivariance stage: scores per transformation and block, next to what they are worth.

Source: SER Table 4, whose formula is not in the text; see `companion_scores`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import EvaluationBatch
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.distributed import gather
from ser_lightning.evaluation.full_precision import full_float32, refuse_half_weights
from ser_lightning.evaluation.metrics.angles import angle_name, angle_scores
from ser_lightning.evaluation.metrics.equivariance import (
    FAMILIES,
    ROWS,
    Reference,
    companion_scores,
    place_of,
    reference_positions,
)
from ser_lightning.evaluation.per_image import Rows, per_image
from ser_lightning.evaluation.stage import Stage, StageResult
from ser_lightning.numbers import Degrees, PositiveInt, checked

_PROTOCOL = {
    "families": list(FAMILIES), "rotation": "1 to 3 quarter turns", "identity": False,
    "precision": "float32",
}  # fmt: skip


def reference_of(
    trainer: L.Trainer, backbone: SplitViT, loader: DataLoader, layers: Sequence[int], total: int
) -> Reference:
    """The mean token per layer of a set of `total` images, and some maps; a collective call."""
    chosen = reference_positions(total)
    shape = (len(layers), backbone.width, *backbone.grid)
    few = Rows(math.prod(shape))
    sums = torch.zeros(len(layers), backbone.width, dtype=torch.float64)

    def values(batch: EvaluationBatch) -> Tensor:
        with torch.autocast(batch.pixels.device.type, enabled=False):
            maps = torch.stack(backbone.token_maps(batch.pixels, layers), 1)
        sums.add_(maps.flatten(3).mean(3).cpu().double().sum(0))
        index = batch.indices.cpu()
        lent = torch.isin(index, chosen)
        few.add(index[lent], index[lent], maps[lent.to(maps.device)].flatten(1))
        return torch.zeros(len(maps), 1)  # what is kept is in the sums

    count = len(per_image(trainer, backbone, loader, 1, values).slots)
    device = trainer.strategy.root_device
    mean = (gather(sums[None]).sum(0) / count).float().to(device)
    _, maps, positions = few.gather()  # of those that could be read
    if len(positions) < 2:  # no other image
        return Reference(tuple(mean.unbind(0)))
    maps = maps.unflatten(1, shape).to(device)
    return Reference(tuple(mean.unbind(0)), positions, tuple(maps.unbind(1)))


Means = dict[tuple[str, str, int], float]
"""The mean over images for each row, family and layer; nan where a row is not defined."""


def mean_scores(
    trainer: L.Trainer,
    backbone: SplitViT,
    data: LabelledDataModule,
    layers: Sequence[int],
    total: int,
    seed: int,
    angles: Sequence[float] = (),
) -> tuple[Means, int]:
    """Scores `total` test images, in two passes; a collective call.

    Returns:
        The means, and over how many images: those that could be read.
    """
    first, second = (data.clean_loader("test", total) for _ in range(2))
    turned_layers = [each for each in layers if each in (backbone.layer, backbone.depth)]
    columns = [(row, f, layer) for row in ROWS for f in FAMILIES for layer in layers]
    columns += [
        (row, angle_name(a), layer) for row in ROWS for a in angles for layer in turned_layers
    ]
    with full_float32():
        reference = reference_of(trainer, backbone, first, layers, total)
        known = reference.at([layers.index(each) for each in turned_layers])

        def values(batch: EvaluationBatch) -> Tensor:
            images = backbone, batch.pixels
            scores = companion_scores(*images, layers, batch.indices, reference, seed)
            if angles:
                turned = angle_scores(*images, turned_layers, batch.indices, known, angles)
                scores = {row: {**scores[row], **turned[row]} for row in ROWS}
            return torch.stack([scores[row][family][layer] for row, family, layer in columns], 1)

        found = per_image(trainer, backbone, second, len(columns), values).values
    means: Tensor = found.double().mean(0)
    return dict(zip(columns, means.tolist(), strict=True)), len(found)


@checked
class EquivarianceStage(Stage):
    """Scores how well token maps follow rotations, flips and resizes of the image.

    Metrics are `equivariance/<family>_final` after the final norm and
    `equivariance/<family>_block<n>` after block n, 0 being the map before the first one. The
    companions have a row's name in between, as in `equivariance/chance/flip_final`: `random_init`
    and `random_init_mean_centred` for fresh weights, `chance` for another image's map, `no_action`
    for the map as it was (not for resizes, where sizes differ), `mean_centred` without the mean
    token. All in float32, whatever the precision of the trainer. Turns by chosen angles, at the
    regularised block and after the final norm, are `equivariance/turn<degrees>_<place>`.

    Args:
        checkpoint: file of a pretraining run.
        num_images: test images to use, the same number of each class; null takes all. 10,000 are
            enough for three digits.
        angles: degrees, counter-clockwise, by which images and maps are turned about the centre,
            for a curve in the figure; bilinear, over the tokens whose patch was inside of the
            image. Each is one more pass over the images.
        stage: further arguments of every stage.
    """

    name = "equivariance"
    needs_labels = False
    figure = "ser_lightning.reporting.equivariance_figure:equivariance_figure"

    def __init__(
        self,
        checkpoint: str,
        num_images: PositiveInt | None = None,
        angles: list[Degrees] | None = None,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        self.num_images = num_images
        self.angles = list(dict.fromkeys(angles or ()))

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        refuse_half_weights(trainer)
        data.setup("test")
        total = len(data.images("test"))
        num_images = total if self.num_images is None else min(self.num_images, total)
        layers = range(self.backbone.depth + 1)
        (trained, num_read), (fresh, _) = (
            mean_scores(trainer, backbone, data, layers, num_images, self.seed, self.angles)
            for backbone in (self.backbone, self.random_backbone())
        )
        rows = {"score": "", **{row: f"{row}/" for row in ROWS[1:]}}
        named = {(rows[row], f, layer): v for (row, f, layer), v in trained.items()}
        for row, name in (("score", "random_init/"), ("mean_centred", "random_init_mean_centred/")):
            named |= {(name, f, layer): v for (r, f, layer), v in fresh.items() if r == row}
        part = [f"measured on {num_images} of {total} images"] if num_images < total else []
        return [
            self.result(
                data,
                _metrics(named, self.backbone.depth),
                num_read,
                feature={"token_maps_after_blocks": list(layers), "final_norm": "last block only"},
                protocol={"num_images": num_images, **_PROTOCOL},
                reasons=part,
            )
        ]


def _metrics(values: dict[tuple[str, str, int], float], depth: int) -> dict[str, float]:
    """Names the values, those to read first; leaves out what is not defined.

    First come those after the final norm, and of these the ones without the mean token.
    """
    order = sorted(values, key=lambda key: (key[2] != depth, "mean_centred" not in key[0]))
    return {
        f"equivariance/{row}{family}_{place_of(layer, depth)}": values[row, family, layer]
        for row, family, layer in order
        if not math.isnan(values[row, family, layer])
    }
