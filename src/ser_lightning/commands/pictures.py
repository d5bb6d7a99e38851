"""What `fit` draws while it trains: views, token maps, and neighbours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import NO_IMAGES
from ser_lightning.data import BatchKey, PartitionedDataModule
from ser_lightning.data.datasets import CleanImages
from ser_lightning.data.draws import Canvas, Draws
from ser_lightning.data.reading import NothingReadError
from ser_lightning.data.render import HostBatch, render
from ser_lightning.evaluation import OnlineEvaluation
from ser_lightning.evaluation.neighbours import Neighbours
from ser_lightning.groups import Frame, GroupElement, act
from ser_lightning.groups.frame import MAX_SCALE
from ser_lightning.numbers import NonNegativeInt, checked
from ser_lightning.reporting.figures import token_map_figure
from ser_lightning.reporting.gallery import CROPS, ViewGallery, view_figure
from ser_lightning.reporting.neighbours import NeighbourRow, neighbour_figure
from ser_lightning.reporting.runs import PICTURE_FOLDER
from ser_lightning.reporting.token_maps import TokenComparison, token_maps_of
from ser_lightning.run_length import is_trial

NUM_IMAGES = 2  # whose views are drawn, the first ones
NUM_TRIED = 16  # that are looked at for readable ones
NUM_MEAN = 256  # whose tokens make the mean token


@checked
class Pictures(L.Callback):
    """Draws into the run's folder and for TensorBoard, at the start and at each validation.

    `pictures/views.png`: two images with what both pipelines make of them. `pictures/
    token_maps.png`: the token map of three fixed validation images after the regularizer's block,
    and of their turned, flipped and resized copies. `pictures/neighbours.png`: six validation
    images and what the embedding finds nearest to them now, and in a run that was not resumed at
    the start. The newest one of each stays; TensorBoard has all.

    Args:
        every: Validations between two drawings; 0 draws nothing at all.
    """

    def __init__(self, every: NonNegativeInt = 1) -> None:
        self.every = every
        self._num_validations = 0
        self._pixels: Tensor | None = None
        self._first: dict[str, list[NeighbourRow]] = {}

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        is_fit = trainer.state.fn == "fit" and not is_trial(trainer)
        wanted = self.every and is_fit and trainer.is_global_zero
        if not wanted or not isinstance(data, PartitionedDataModule):
            return
        self._num_validations += 1
        if (self._num_validations - 1) % self.every:
            return
        folder = Path(trainer.default_root_dir) / PICTURE_FOLDER
        backbone: Any = pl_module.backbone
        if self._pixels is None:
            views = gallery(data, pl_module.regularizer)
            if views is not None:
                view_figure(folder / "views.png", views)
                self._log(trainer, folder / "views.png")
            self._pixels = evaluation_pixels(data).to(pl_module.device)
        with torch.autocast(pl_module.device.type, enabled=False):
            found = comparisons(data, {"this run": backbone}, self._pixels)
        token_map_figure(folder / "token_maps.png", found, backbone.layer)
        self._log(trainer, folder / "token_maps.png")
        self._draw_neighbours(trainer, data, folder / "neighbours.png")

    def _draw_neighbours(self, trainer: L.Trainer, data: PartitionedDataModule, path: Path) -> None:
        """Draws what OnlineEvaluation, which has the features, found just before."""
        found = [c.neighbours for c in trainer.callbacks if isinstance(c, OnlineEvaluation)]  # type: ignore[attr-defined]
        if not found or found[0] is None:
            return
        bank, queries = (loader.dataset.make for loader in trainer.val_dataloaders)  # type: ignore[union-attr]
        rows = neighbour_rows(found[0], bank, queries, data)
        is_start = trainer.sanity_checking
        now = {"at the start" if is_start else f"after step {trainer.global_step}": rows}
        if is_start:
            self._first = now
        neighbour_figure(path, self._first | now)
        self._log(trainer, path)

    def _log(self, trainer: L.Trainer, path: Path) -> None:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        for logger in trainer.loggers:
            add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
            if add_image is not None:  # TensorBoard's
                add_image(f"pictures/{path.stem}", pixels, trainer.global_step, dataformats="HWC")


def gallery(data: PartitionedDataModule, regularizer: Any) -> ViewGallery | None:
    """The first images that can be read, through both pipelines; None where none can be.

    Tokens of crops that the regularizer, or None, compares are marked.
    """
    tried = np.arange(min(NUM_TRIED, len(data.train_images)))
    clean = CleanImages(data.reader(data.train_images), data.clean)
    try:
        found = clean(tried)
    except NothingReadError:
        return None
    indices, upright = found.indices[:NUM_IMAGES].numpy(), found.pixels[:NUM_IMAGES]
    images = [data.train_images.read(int(index)) for index in indices]
    draws = Draws(data.seed, BatchKey(0, 0), indices, turned=np.ones(len(indices), bool))
    canvas, pipeline = Canvas(data.image_size, data.patch_size), data.invertible
    crop = data.crop.without_local()
    crops = data.crop if data.needs.places else crop  # one local crop of each, where compared
    batch = render(
        HostBatch(
            crops.make(images, draws, canvas)[: len(CROPS)],
            () if pipeline is None else pipeline.make(images, draws, canvas, crop),
            *(NO_IMAGES,) * 2,
        ),
        data.patch_size,
        data.mean,
        data.std,
    )
    elements = tuple(view.element for view in batch.invertible if view.element is not None)
    frames = tuple(
        Frame.of_crop(view.record, canvas.grid(view.pixels.shape[-1])) for view in batch.crop
    )
    is_turned = pipeline is not None and pipeline.group.angle > 0
    return ViewGallery(
        _denormalise(upright, data),
        tuple(_denormalise(view.pixels, data) for view in batch.crop),
        tuple(_denormalise(view.pixels, data) for view in batch.invertible),
        elements,
        tuple(v.record for v in (*batch.crop, *batch.invertible) if v.record is not None),
        frames if data.needs.places else None,
        tuple(map(Frame.of_element, elements)) if is_turned else None,
        getattr(regularizer, "max_scale", MAX_SCALE),
    )


def neighbour_rows(
    found: Neighbours, bank: CleanImages, queries: CleanImages, data: PartitionedDataModule
) -> list[NeighbourRow]:
    """Reads the images that were found, from the sets whose slots they are."""
    names = data.train_images.class_names
    rows = []
    for slot, slots, cosine in zip(*found, strict=True):
        query, near = queries(slot[None].numpy()), bank(slots.numpy())
        label = int(query.label)
        has_label = label >= 0 and bool((near.label >= 0).all())
        rows.append(
            NeighbourRow(
                _denormalise(query.pixels[0], data),
                _denormalise(near.pixels, data),
                cosine,
                (near.label == label).tolist() if has_label else (),
                names[label] if has_label else "",
            )
        )
    return rows


def evaluation_pixels(data: PartitionedDataModule) -> Tensor:
    """(N, 3, H, W) clean validation images, at most `NUM_MEAN`, in a drawn order."""
    images = data.source.evaluation()
    assert images is not None, "there are images to evaluate on"
    # drawn, since images may be sorted by class or take turns
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:NUM_MEAN]
    return CleanImages(data.reader(images), data.clean)(order.numpy()).pixels


@torch.no_grad()
def comparisons(
    data: PartitionedDataModule, encoders: Mapping[str, SplitViT], pixels: Tensor
) -> list[TokenComparison]:
    """Token maps of the first three images under a turn, a flip and a resize.

    The encoders are in evaluation mode; tokens of all pixels (N, 3, H, W) make the mean token.
    """
    backbone = next(iter(encoders.values()))
    (height, width), layer = backbone.grid, backbone.layer
    means = {
        name: encoder.token_maps(pixels, [layer])[0].mean((0, 2, 3))
        for name, encoder in encoders.items()
    }
    yes, no = torch.tensor([True]), torch.tensor([False])
    elements = {
        "turned by 90 deg": GroupElement(no, no, 1, backbone.grid),
        "flipped": GroupElement(yes, no, 0, backbone.grid),
        "resized": GroupElement(no, no, 0, (height + 2, max(width - 2, 1))),
    }
    found = []
    for image, (caption, element) in zip(pixels, elements.items(), strict=False):
        transformed = act(element, image[None], backbone.patch_size)[0]
        maps = {
            name: token_maps_of(encoder, image, element, layer, means[name])
            for name, encoder in encoders.items()
        }
        shown = _denormalise(image, data), _denormalise(transformed, data)
        found.append(TokenComparison(caption, *shown, maps))
    return found


def _denormalise(pixels: Tensor, data: PartitionedDataModule) -> Tensor:
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (data.mean, data.std))
    return (pixels.cpu() * std + mean).clamp(0, 1)
