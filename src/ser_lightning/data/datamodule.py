"""The one LightningDataModule: partitioned training batches, clean evaluation batches."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from ser_lightning.batch import EvaluationBatch, PartitionedBatch, ViewNeeds
from ser_lightning.data.datasets import (
    EvaluationBatches,
    LazyLoader,
    OnBadImage,
    TrainingBatches,
    balanced_subset,
    evaluation_loader,
    step_loader,
)
from ser_lightning.data.pipelines import CropViews, ExtraViews, InvertibleViews
from ser_lightning.data.plan import BatchKey, Plan, count_invertible, per_device
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD, HostBatch, render
from ser_lightning.data.settings import RotatedCrops, check_local, check_size
from ser_lightning.data.sources.base import ImageSet, Source, open_source
from ser_lightning.randomness import Stream, generator

_NO_NEEDS = ViewNeeds()


class PartitionedDataModule(L.LightningDataModule):
    """Emits batches split into a crop and an invertible sub-batch, the same at any device count.

    The batch at (seed, epoch, step) depends on nothing else: not on the number of workers or
    processes, nor on what was loaded before. That makes resuming exact.

    Args:
        source: where the images come from.
        global_batch_size: images per optimizer step, over all devices and accumulation steps.
        crop: the crop pipeline; its local crops are added to both sub-batches.
        invertible: the invertible pipeline and its share of the batch; null for none.
        image_size: side of the images in pixels; ser-fit takes it from the backbone.
        patch_size: side of a token in pixels; ser-fit takes it from the backbone.
        num_workers: worker processes per device that read and crop images.
        on_bad_image: what an unreadable image means: "fail" stops the run and names the file,
            "skip" takes the next image in its place, warns with its name, and counts it.
        mean: channel means for normalisation.
        std: channel standard deviations for normalisation.
        evaluation_batch_size: images per device and batch in evaluation.
        evaluation_crop_fraction: share of the resized side that the central crop keeps in
            evaluation; 0.875 resizes to 256 and crops 224. Use 1 for small, centred images.
        bank_size: training images in the k-NN bank during `fit`, the same number of each class;
            `validate` takes all of them unless `validate_bank_size` is set.
        validate_bank_size: training images in the k-NN bank during `validate`; null takes all.
        num_queries: validation images to evaluate; null takes all.
        seed: seed of the data path; ser-fit takes it from `seed_everything`.
        rotated: the crop behind the rotated views, where an add-on needs them; null for E-SSL's.
        needs: which views an add-on asks for; ser-fit takes it from the model.

    Raises:
        ValueError: a size is not a multiple of the patch size, or the number of local crops is
            odd and there is an invertible sub-batch.
    """

    def __init__(
        self,
        source: Source,
        global_batch_size: int = 2048,
        crop: CropViews | None = None,
        invertible: InvertibleViews | None = None,
        image_size: int = 224,
        patch_size: int = 16,
        num_workers: int = 8,
        on_bad_image: OnBadImage = "fail",
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        evaluation_batch_size: int = 256,
        evaluation_crop_fraction: float = 224 / 256,
        bank_size: int = 10_000,
        validate_bank_size: int | None = None,
        num_queries: int | None = None,
        seed: int = 0,
        rotated: RotatedCrops | None = None,
        needs: ViewNeeds = _NO_NEEDS,
    ) -> None:
        super().__init__()
        check_size("image size", image_size, patch_size)
        if crop is not None and crop.local is not None:
            check_local(crop.local, patch_size, in_pairs=invertible is not None)
        rotated = rotated or RotatedCrops()
        if needs.rotated:
            check_size("`data.rotated.size`", rotated.size, patch_size)
        self.source = source
        self.global_batch_size = global_batch_size
        self.crop = crop or CropViews()
        self.invertible = invertible
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_workers = num_workers
        self.on_bad_image: OnBadImage = on_bad_image
        self.mean = mean
        self.std = std
        self.evaluation_batch_size = evaluation_batch_size
        self.evaluation_crop_fraction = evaluation_crop_fraction
        self.bank_size = bank_size
        self.validate_bank_size = validate_bank_size
        self.num_queries = num_queries
        self.seed = seed
        self.rotated = rotated
        self.needs = needs
        self._num_invertible: int | None = None
        self._steps_of_checkpoint: int | None = None
        self._train_images: ImageSet | None = None

    def prepare_data(self) -> None:
        """Fetches what the source lacks, in one process per node."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Opens the source and fixes the partition, so that mistakes show before training.

        Raises:
            ValueError: the batch does not divide by devices, is larger than the data set, is too
                small for the partition ratio, or does not form the pairs that an add-on needs.
        """
        if self._train_images is None:
            self._train_images, _ = open_source(self.source)
        if stage == "fit":
            plan = self._plan()
            invertible, batch = plan.num_invertible, plan.batch_size
            rank_zero_info(
                f"data: {plan.num_images} images, {plan.steps_per_epoch} batches of {batch} per "
                f"epoch, {invertible} of each batch invertible ({invertible / batch:.2%})"
            )

    @property
    def train_images(self) -> ImageSet:
        """The training split; available after `setup`."""
        assert self._train_images is not None, "setup() has not run"
        return self._train_images

    def _plan(self) -> Plan:
        trainer = self.trainer
        world_size = trainer.world_size if trainer else 1
        accumulate = trainer.accumulate_grad_batches if trainer else 1
        per_device(self.global_batch_size, world_size, accumulate)
        batch_size = self.global_batch_size // accumulate
        if self._num_invertible is None:
            self._num_invertible = (
                count_invertible(
                    self.invertible.ratio, self.global_batch_size, world_size, accumulate
                )
                if self.invertible is not None
                else 0
            )
        if self.needs.paired:
            _check_pairs((batch_size - self._num_invertible) // world_size)
        return Plan(
            len(self.train_images),
            batch_size,
            self._num_invertible,
            self.seed,
            trainer.global_rank if trainer else 0,
            world_size,
            accumulate,
        )

    def train_dataset(self) -> TrainingBatches:
        """The data set that maps a `BatchKey` to this rank's host batch."""
        needs, fraction = self.needs, self.evaluation_crop_fraction
        rotated = self.rotated if needs.rotated else None
        return TrainingBatches(
            self.train_images,
            self._plan(),
            self.crop,
            self.invertible,
            self.image_size,
            self.patch_size,
            self.on_bad_image,
            ExtraViews(needs.plain, rotated, self.crop, fraction, self.patch_size),
            needs.paired,
        )

    def train_dataloader(self) -> LazyLoader:
        """Loads the steps that are left, counted by the trainer."""
        dataset = self.train_dataset()
        return step_loader(
            dataset, len(dataset), self._position, self.num_workers, self._pin_memory
        )

    def _steps_per_epoch(self) -> int:
        """Batches per epoch, as limited by the trainer."""
        steps = self._plan().steps_per_epoch
        return int(min(self.trainer.fit_loop.max_batches, steps)) if self.trainer else steps

    def _position(self) -> BatchKey:
        if self.trainer is None:
            return BatchKey(0, 0)
        steps = self._steps_per_epoch()
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        if self._steps_of_checkpoint not in (None, steps):
            raise ValueError(
                f"the checkpoint was trained on {self._steps_of_checkpoint} batches per epoch, now "
                f"there are {steps}; resume with the old `trainer.limit_train_batches`"
            )
        return BatchKey(*divmod(progress.processed, steps))

    def val_dataloader(self) -> list[DataLoader]:
        """Two loaders of clean images: the k-NN bank from the training split, and the queries."""
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        bank_size = self.bank_size if fitting else self.validate_bank_size
        train = self.train_images
        return [
            self._evaluation_loader(train, bank_size),
            self._evaluation_loader(self.source.evaluation() or train, self.num_queries),
        ]

    def test_dataloader(self) -> list[DataLoader]:
        """The loaders of `val_dataloader`."""
        return self.val_dataloader()

    def _evaluation_loader(self, images: ImageSet, size: int | None) -> DataLoader:
        size = len(images) if size is None else size
        dataset = EvaluationBatches(
            images,
            balanced_subset(images.labels, size, generator(0, Stream.SUBSET)),  # for every seed
            self.evaluation_batch_size,
            self.image_size,
            self.evaluation_crop_fraction,
            self.mean,
            self.std,
            self.trainer.global_rank if self.trainer else 0,
            self.trainer.world_size if self.trainer else 1,
            self.on_bad_image,
        )
        return evaluation_loader(dataset, self.num_workers, self._pin_memory)

    @property
    def _pin_memory(self) -> bool:
        return torch.cuda.is_available()

    def on_after_batch_transfer(
        self, batch: HostBatch | EvaluationBatch, dataloader_idx: int
    ) -> PartitionedBatch | EvaluationBatch:
        """Renders a training batch on the device; an evaluation batch is finished already."""
        if isinstance(batch, HostBatch):
            return render(batch, self.patch_size, self.mean, self.std)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """What makes the sequence of batches, to be compared at a restart."""
        plan = self._plan()
        return {
            "seed": plan.seed,
            "num_images": plan.num_images,
            "batch_size": plan.batch_size,
            "num_invertible": plan.num_invertible,
            "partition_ratio": self.invertible.ratio if self.invertible else 0.0,
            "num_local": self.crop.local.num if self.crop.local else 0,
            "paired": self.needs.paired,
            "steps_per_epoch": self._steps_per_epoch(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the saved partition and refuses to continue with other batches.

        Raises:
            ValueError: the run would see other batches than the one that it continues.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        if self.invertible is not None:
            # Rounded for the ranks the run began with; it stays, so that the batches stay.
            self._num_invertible = state_dict["num_invertible"]
        self._steps_of_checkpoint = state_dict["steps_per_epoch"]  # compared at the first batch
        state_dict = {"paired": False} | state_dict  # earlier checkpoints do not mention it
        current = self.state_dict()
        changed = [
            f"{name} was {state_dict.get(name, 'not known')}, is {current[name]}"
            for name in current
            if current[name] != state_dict.get(name) and name != "steps_per_epoch"
        ]
        if changed:
            raise ValueError(
                f"the checkpoint was trained on other batches: {'; '.join(changed)}. Resume with "
                "the old values, or start a new run in another --run_dir"
            )


def _check_pairs(num_crop: int) -> None:
    if num_crop % 2:
        raise ValueError(
            f"a rank's crop sub-batch has {num_crop} images, which do not form the pairs that the "
            "add-on needs; make it even with another `data.global_batch_size` or partition ratio"
        )
