"""The data module of pretraining: partitioned training batches, clean evaluation batches."""

from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.batch import EvaluationBatch, PartitionedBatch, ViewNeeds
from ser_lightning.data.base import ImageDataModule
from ser_lightning.data.datasets import TrainingViews
from ser_lightning.data.draws import Canvas
from ser_lightning.data.extra_views import RotatedCrops, check_local, check_size
from ser_lightning.data.pipelines import CropViews, ExtraViews, InvertibleViews
from ser_lightning.data.plan import BatchKey, Plan, count_invertible
from ser_lightning.data.render import HostBatch, render
from ser_lightning.numbers import PositiveInt, checked
from ser_lightning.sources.base import ImageSet, Source
from ser_lightning.sources.opening import open_source

_NO_NEEDS = ViewNeeds()


@checked
class PartitionedDataModule(ImageDataModule):
    """Emits batches split into a crop and an invertible sub-batch, the same at any device count.

    The batch at (seed, epoch, step) depends on nothing else: not on the number of workers or
    processes, nor on what was loaded before. That makes resuming exact.

    Args:
        source: where the images come from.
        global_batch_size: images per optimizer step, over all devices and accumulation steps.
        crop: the crop pipeline; its local crops are added to both sub-batches.
        invertible: the invertible pipeline and its share of the batch; null for none.
        patch_size: side of a token in pixels; ser-fit takes it from the backbone.
        bank_size: training images in the k-NN bank during `fit`, the same number of each class;
            `validate` takes all of them unless `validate_bank_size` is set, and the stage `knn` has
            its own, in `evaluation/stages/knn.py`.
        validate_bank_size: training images in the k-NN bank during `validate`; null takes all.
        num_queries: validation images to evaluate; null takes all.
        rotated: the crop behind the rotated views, where an add-on needs them; null for E-SSL's.
        needs: which views an add-on asks for; ser-fit takes it from the model.
        images: further arguments of ImageDataModule.

    Raises:
        ValueError: a size is not a multiple of the patch size, or the number of local crops is
            odd and there is an invertible sub-batch.
    """

    def __init__(
        self,
        source: Source,
        global_batch_size: PositiveInt = 2048,
        crop: CropViews | None = None,
        invertible: InvertibleViews | None = None,
        patch_size: PositiveInt = 16,
        bank_size: PositiveInt = 10_000,
        validate_bank_size: PositiveInt | None = None,
        num_queries: PositiveInt | None = None,
        rotated: RotatedCrops | None = None,
        needs: ViewNeeds = _NO_NEEDS,
        **images: Any,
    ) -> None:
        super().__init__(source, global_batch_size, crop, **images)
        check_size("image size", self.image_size, patch_size)
        if self.crop.local is not None:
            check_local(self.crop.local, patch_size, in_pairs=invertible is not None)
        self.rotated = rotated or RotatedCrops()
        if needs.rotated:
            check_size("`data.rotated.size`", self.rotated.size, patch_size)
        self.invertible = invertible
        self.patch_size = patch_size
        self.bank_size = bank_size
        self.validate_bank_size = validate_bank_size
        self.num_queries = num_queries
        self.needs = needs
        self._num_invertible: int | None = None
        self._steps_of_checkpoint: int | None = None
        self._train_images: ImageSet | None = None

    @override
    def setup(self, stage: str) -> None:
        if self._train_images is None:
            self._train_images, _ = open_source(self.source)
        if stage == "fit":  # mistakes show before training
            plan = self.plan()
            invertible, batch = plan.num_invertible, plan.batch_size
            rank_zero_info(
                f"data: {plan.num_images:,} images, {plan.steps_per_epoch:,} batches of {batch} "
                f"per epoch, {invertible} of each batch invertible ({invertible / batch:.2%})"
            )

    @property
    @override
    def train_images(self) -> ImageSet:
        assert self._train_images is not None, "setup() has not run"
        return self._train_images

    @override
    def num_invertible(self, world_size: int, accumulate: int) -> int:
        if self._num_invertible is None and self.invertible is not None:
            self._num_invertible = count_invertible(
                self.invertible.ratio, self.global_batch_size, world_size, accumulate
            )
        count = self._num_invertible or 0
        num_crop = (self.global_batch_size // accumulate - count) // world_size
        if self.needs.paired and num_crop % 2:
            raise ValueError(
                f"a rank's crop sub-batch has {num_crop} images, which do not form the pairs that "
                "the add-on needs; make it even with another `data.global_batch_size`, partition "
                "ratio or number of processes"
            )
        return count

    @override
    def training_batches(self, plan: Plan) -> TrainingViews:
        needs = self.needs
        extra = ExtraViews(
            self.clean if needs.plain else None, self.rotated if needs.rotated else None
        )
        return TrainingViews(
            self.reader(self.train_images),
            plan,
            self.crop,
            self.invertible,
            Canvas(self.image_size, self.patch_size),
            extra,
            needs.paired,
        )

    @override
    def _position(self, trainer: L.Trainer | None) -> BatchKey:
        steps = self._steps_per_epoch(trainer)
        if trainer is not None and self._steps_of_checkpoint not in (None, steps):
            raise ValueError(
                f"the checkpoint was trained on {self._steps_of_checkpoint} batches per epoch, now "
                f"there are {steps}; resume with the old `trainer.limit_train_batches`"
            )
        return super()._position(trainer)

    @override
    def val_dataloader(self) -> list[DataLoader]:
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        bank_size = self.bank_size if fitting else self.validate_bank_size
        queries = self.source.evaluation()
        if queries is None:  # images are not measured against themselves
            return []
        return [
            self.clean_images(self.train_images, bank_size, 0, "bank"),
            self.clean_images(queries, self.num_queries, 0, "evaluation"),
        ]

    @override
    def test_dataloader(self) -> list[DataLoader]:
        return self.val_dataloader()

    @override
    def on_after_batch_transfer(
        self, batch: HostBatch | EvaluationBatch, dataloader_idx: int
    ) -> PartitionedBatch | EvaluationBatch:
        if isinstance(batch, HostBatch):  # an evaluation batch is finished already
            return render(batch, self.patch_size, self.mean, self.std)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """What makes the sequence of batches, to be compared at a restart."""
        plan = self.plan()
        return {
            "seed": plan.seed,
            "num_images": plan.num_images,
            "batch_size": plan.batch_size,
            "accumulate": plan.accumulate,
            "num_invertible": plan.num_invertible,
            "partition_ratio": self.invertible.ratio if self.invertible else 0.0,
            "num_local": self.crop.local.num if self.crop.local else 0,
            "paired": self.needs.paired,
            "steps_per_epoch": self._steps_per_epoch(self.trainer),
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
        current = self.state_dict()
        # earlier checkpoints do not mention these
        state_dict = {"paired": False, "accumulate": current["accumulate"]} | state_dict
        changed = [
            f"{name} was {state_dict.get(name, 'not known')}, is {current[name]}"
            for name in current
            if current[name] != state_dict.get(name) and name != "steps_per_epoch"
        ]
        if changed:
            raise ValueError(
                f"the checkpoint was trained on other batches: {'; '.join(changed)}. Resume with "
                "the old values, or start a new run in another --run_dir (batch_size is that of a "
                "pass: `data.global_batch_size` / `trainer.accumulate_grad_batches`)"
            )
