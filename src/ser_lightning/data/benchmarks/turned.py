"""The source's test images in all four quarter turns, for a classifier that saw them upright."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F
from typing_extensions import override

from ser_lightning.data.benchmarks.conditions import BenchmarkDataModule, Condition
from ser_lightning.sources.base import Derived
from ser_lightning.sources.released import held_out_reasons

DEGREES = (0, 90, 180, 270)


@dataclass(eq=False)
class TurnedImages(Derived):
    """The middle square of images in four counter-clockwise turns: `read` gives (4, 3, S, S)."""

    @override
    def read(self, index: int) -> Tensor:
        image = self.images.read(index)
        square = F.center_crop(image, [min(image.shape[-2:])] * 2)
        return torch.stack([square.rot90(turns, (-2, -1)) for turns in range(len(DEGREES))])


class TurnedDataModule(BenchmarkDataModule):
    """The evaluation split of the source, upright and turned by 90, 180 and 270 degrees.

    Args:
        source: the images that the classifier was trained on; by default those of the checkpoint.
        labelled: further arguments of LabelledDataModule.
    """

    @property
    @override
    def benchmark_name(self) -> str:
        return self.dataset_name

    @property
    @override
    def data_root(self) -> str:
        return str(getattr(self.source, "root", ""))

    @override
    def open(self) -> tuple[Condition, ...]:
        whole = self.source_images()
        images = self.part(TurnedImages(whole))
        crop = self.evaluation_crop_fraction
        names = ("upright", *(f"turn{degrees}" for degrees in DEGREES[1:]))
        reasons = ("no published protocol", *held_out_reasons(whole))
        return tuple(Condition(name, 0, images, crop, reasons) for name in names)

    @override
    def test_dataloader(self) -> DataLoader:
        return self.rendered_loader()
