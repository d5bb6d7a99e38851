"""The latent stage: embeddings of a few classes in a plane, and how pure their neighbourhoods are.

Source: SER appendix A.6, which shows 20 random classes by t-SNE.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.metrics.purity import chance_purity, mean_by_class, neighbour_purity
from ser_lightning.evaluation.per_image import GatheredRows, per_image
from ser_lightning.evaluation.stage import Stage, StageResult
from ser_lightning.numbers import AtLeastOne, AtLeastTwo, PositiveInt, checked
from ser_lightning.randomness import Stream, generator
from ser_lightning.results.measures import distinct
from ser_lightning.results.points import Points
from ser_lightning.sources.base import ImageSet, Part


def choose_images(label: Tensor, num_classes: int, num_per_class: int, seed: int) -> np.ndarray:
    """Sorted positions of some images of random classes, the same ones for equal arguments.

    Args:
        label: (N,) int64 classes of all images.
        num_classes: how many classes, of those with two images or more; all where there are fewer.
        num_per_class: how many images of each; all where there are fewer.
        seed: of the draws.

    Raises:
        ValueError: if less than two classes have two images.
    """
    classes, counts = (each.numpy() for each in label.unique(return_counts=True))
    classes = classes[counts > 1]
    if len(classes) < 2:
        raise ValueError(
            f"{len(classes)} classes have two images or more; neighbourhoods compare at least 2"
        )
    rng = generator(seed, Stream.SUBSET, 6)
    chosen = rng.permutation(classes)[:num_classes]
    found = [np.flatnonzero(label.numpy() == each) for each in chosen]
    return np.sort(np.concatenate([rng.permutation(each)[:num_per_class] for each in found]))


def to_plane(embeddings: Tensor, seed: int, perplexity: float = 30.0) -> Tensor:
    """The (N, 2) float32 t-SNE of embeddings (N, C) by cosine; the same for the same seed.

    The perplexity is lower for fewer than 91 images, which have not as many neighbours.
    """
    from sklearn.manifold import TSNE  # noqa: PLC0415 - an extra, which its absence names

    # of unit vectors, squared distances are 2 - 2 cos
    vectors = F.normalize(embeddings.float(), dim=1).cpu().numpy()
    perplexity = min(perplexity, (len(vectors) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)
    return torch.from_numpy(np.asarray(found, np.float32))


@checked
class LatentStage(Stage):
    """Shows the [CLS] embeddings of random classes, and measures how far classes are apart.

    Metrics, in percent: `purity/<class>`, the share of the nearest neighbours of its images that
    are of the class too, by cosine in the embedding space and among the chosen images; `purity`,
    the mean over classes; `random_init/purity` for fresh weights and `purity_chance` for
    neighbours drawn at random. The figure's t-SNE shows the same embeddings; nothing is measured
    in its plane. `ser-fit latent` puts checkpoints side by side.

    Args:
        checkpoint: file of a pretraining run.
        num_classes: random classes, by the seed; all where there are fewer.
        num_per_class: test images of each; all where there are fewer.
        k: neighbours of each image; fewer where the smallest class has not as many others.
        perplexity: of the t-SNE: about how many neighbours an image attracts.
        stage: further arguments of every stage.

    Raises:
        ValueError: if scikit-learn is not installed.
    """

    name = "latent"
    title = "Latent space"
    package = ("sklearn", "latent")
    figure = "ser_lightning.reporting.latent_figure:latent_figure"

    def __init__(
        self,
        checkpoint: str,
        num_classes: AtLeastTwo = 20,
        num_per_class: AtLeastTwo = 50,
        k: PositiveInt = 20,
        perplexity: AtLeastOne = 30.0,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        self.require_package()
        self.num_classes = num_classes
        self.num_per_class = num_per_class
        self.k = k
        self.perplexity = perplexity
        self.chosen: ImageSet | None = None  # from `run` on

    @override
    def measured_sets(self, data: LabelledDataModule, dataset: str | None) -> Sequence[ImageSet]:
        assert self.chosen is not None, "run() has not chosen images"
        return [self.chosen]

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        data.setup("test")
        images = data.images("test")
        places = choose_images(images.labels, self.num_classes, self.num_per_class, self.seed)
        self.chosen = chosen = Part(images, places)

        def embed(backbone: SplitViT) -> GatheredRows:
            loader = data.clean_images(chosen, None, 0, "test")  # all of them
            width = backbone.width
            return per_image(trainer, backbone, loader, width, lambda batch: backbone(batch.pixels))

        trained, fresh = embed(self.backbone), embed(self.random_backbone())
        classes, label, count = trained.label.unique(return_inverse=True, return_counts=True)
        kept = (count > 1)[label]  # of the others one image could be read, which has no neighbour
        if not kept.any():
            raise ValueError(
                "no class has two images that can be read; repair them, or give others"
            )
        trained, fresh = (GatheredRows(*(c[kept] for c in each)) for each in (trained, fresh))
        classes, label = trained.label.unique(return_inverse=True)
        words = distinct(data.class_names)
        names = tuple(words[number] for number in classes.tolist())
        k = min(self.k, int(label.bincount().min()) - 1)
        by_class, of_fresh = (
            100 * mean_by_class(neighbour_purity(each.values, label, k), label, len(names))
            for each in (trained, fresh)
        )
        plane = None
        if trainer.is_global_zero:
            plane = to_plane(trained.values, self.seed, self.perplexity)
        part = [f"{len(names)} of {data.num_classes} classes, {len(label)} of {len(images)} images"]
        return [
            self.result(
                data,
                {
                    "purity": by_class.mean().item(),
                    "random_init/purity": of_fresh.mean().item(),
                    "purity_chance": 100 * chance_purity(label),
                    **{f"purity/{n}": v for n, v in zip(names, by_class.tolist(), strict=True)},
                },
                len(label),
                feature={"cls_of_blocks": [self.backbone.depth]},
                protocol={"neighbours": k, "similarity": "cosine"},
                reasons=part if len(label) < len(images) else [],
                points=None if plane is None else Points(plane, label, names),
            )
        ]
