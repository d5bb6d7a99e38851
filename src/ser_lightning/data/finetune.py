"""Augmented training batches for fine-tuning: timm's transforms as a function of the batch's key.

timm's transforms draw from the global generators of Python, NumPy and PyTorch. Here they are
seeded for every image anew and then put back, so that an image's augmentation depends on (seed,
epoch, index, repeat) alone: not on the number of workers or processes, nor on its neighbours.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from typing_extensions import override

from ser_lightning.batch import EvaluationBatch
from ser_lightning.data.crops import needed_side
from ser_lightning.data.datasets import training_batch
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.pipelines import CropViews
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.data.reading import Handful, Reader, made
from ser_lightning.numbers import BelowOne, PositiveInt, Probability, checked
from ser_lightning.randomness import Stream, generator
from ser_lightning.sources.base import Source


@contextmanager
def seeded_globals(draws: np.random.Generator) -> Iterator[None]:
    """Seeds the generators of Python, NumPy and PyTorch's CPU for a while, and puts them back.

    For libraries that take no generator of their own. GPUs' generators are not touched.
    """
    seeds = [int(seed) for seed in draws.integers(2**32, size=3)]
    with isolate_rng(include_cuda=False):
        random.seed(seeds[0])
        np.random.seed(seeds[1])  # noqa: NPY002 - what timm draws from
        torch.default_generator.manual_seed(seeds[2])
        yield


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keeps the upper `bits` bits of each channel, as timm's; none leave a black image.

    RandAugment's largest magnitude asks for none, which Pillow 13 refuses and older ones do.
    """
    if bits < 1:
        return Image.new(image.mode, image.size)
    reduced: Image.Image = auto_augment.posterize(image, bits)
    return reduced


@dataclass(frozen=True)
class AugmentedCrops:
    """Makes this rank's augmented images of a step, normalised.

    A step takes ceil(batch size / num_repeats) images, each `num_repeats` times, the last one as
    often as there is room, and each time augmented differently.
    """

    reader: Reader
    plan: Plan
    transform: Any
    num_repeats: int = 1
    needed_side: int | None = None

    def __call__(self, key: BatchKey) -> EvaluationBatch:
        """The batch of a step."""
        indices, repeats = self.places(key)

        def make(handful: Handful) -> Tensor:
            rows = zip(handful.images, indices[handful.rows], repeats[handful.rows], strict=True)
            return torch.stack([self.augment(image, key.epoch, *row) for image, *row in rows])

        replace = self.plan.seed, key.epoch
        handfuls = self.reader.handfuls(indices, replace, min_side=self.needed_side)
        pixels, _, positions = made(handfuls, make)
        return training_batch(self.reader.images.labels, pixels, indices, positions)

    def places(self, key: BatchKey) -> tuple[np.ndarray, np.ndarray]:
        """(B,) positions of this rank's images of a step, and which repeat of the image each is.

        The ranks take turns, so that the repeats of an image are spread over them.
        """
        plan, repeats = self.plan, self.num_repeats
        distinct = Plan(plan.num_images, math.ceil(plan.batch_size / repeats), 0, plan.seed)
        indices, _ = distinct.indices(key)
        number = np.tile(np.arange(repeats), len(indices))
        mine = slice(plan.rank, plan.batch_size, plan.world_size)
        return np.repeat(indices, repeats)[mine], number[mine]

    def augment(self, image: Tensor, epoch: int, index: int, repeat: int) -> Tensor:
        """One image of an epoch; `index` and `repeat` say what is drawn."""
        draws = generator(self.plan.seed, Stream.AUGMENT, epoch, int(index), int(repeat))
        with seeded_globals(draws):
            augmented: Tensor = self.transform(to_pil_image(image))
        return augmented


@checked
class FinetuneDataModule(LabelledDataModule):
    """Labelled images whose training crops are augmented as in supervised training.

    Random crops and flips, RandAugment, normalisation, random erasing; the parts are timm's.
    Source: DeiT, Table 9 and its public code; BEiT, MAE and iBOT fine-tune with the same.

    Args:
        source: where the images come from; by default the one that the checkpoint was trained on.
        rand_augment: timm's name of the policy; null for crops and flips alone. Beside a policy
            there is no colour jitter, as in the public recipes, whose setting of 0.4 timm ignores.
        p_erasing: probability that a rectangle of an image is replaced by noise.
        num_repeats: how often an image occurs in its step, each time augmented differently; 3 is
            DeiT's repeated augmentation. An epoch keeps its length, and sees fewer images.
        crop: random crops for training: scale, ratio, p_flip, interpolation. Default: bicubic.
        holdout_fraction: share of the training split that is not trained on. Fine-tuning selects
            nothing: by default all of it is trained on.
        labelled: further arguments of LabelledDataModule.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(
        self,
        source: Source,
        rand_augment: str | None = "rand-m9-mstd0.5-inc1",
        p_erasing: Probability = 0.25,
        num_repeats: PositiveInt = 1,
        crop: CropViews | None = None,
        holdout_fraction: BelowOne = 0.0,
        **labelled: Any,
    ) -> None:
        super().__init__(
            source,
            crop=crop or CropViews(interpolation="bicubic"),
            holdout_fraction=holdout_fraction,
            **labelled,
        )
        if rand_augment is not None and not rand_augment.startswith("rand-"):
            raise ValueError(
                f"rand_augment {rand_augment!r} is no policy of RandAugment; use one like "
                "rand-m9-mstd0.5-inc1, or null for none"
            )
        self.rand_augment = rand_augment
        self.p_erasing = p_erasing
        self.num_repeats = num_repeats

    @override
    def training_batches(self, plan: Plan) -> AugmentedCrops:
        reader = self.reader(self.train_images)
        needed = needed_side(self.image_size, self.crop.scale, self.crop.ratio)
        return AugmentedCrops(reader, plan, self.transform(), self.num_repeats, needed)

    def transform(self) -> Any:
        """What is done to a training image, from PIL to a (3, S, S) normalised tensor.

        Raises:
            ValueError: if timm does not know the policy.
        """
        try:
            transform: Any = create_transform(
                self.image_size,
                is_training=True,
                scale=self.crop.scale,
                ratio=self.crop.ratio,
                hflip=self.crop.p_flip,
                interpolation=self.crop.interpolation,
                color_jitter=None,  # type: ignore[arg-type]
                auto_augment=self.rand_augment,
                mean=self.mean,
                std=self.std,
                re_prob=self.p_erasing,
                re_mode="pixel",
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise ValueError(
                f"timm cannot make the policy {self.rand_augment!r} ({error}); use one like "
                "rand-m9-mstd0.5-inc1, or null for none"
            ) from error
        for step in transform.transforms:
            for operation in getattr(step, "ops", ()):
                if operation.aug_fn is auto_augment.posterize:
                    operation.aug_fn = posterize
        return transform
