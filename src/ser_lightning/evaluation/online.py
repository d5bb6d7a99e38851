"""Measures a backbone while it trains, next to what it scored before the first step.

Bank and queries are chosen in `data/datamodule.py` (`bank_size`, `num_queries`).
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import EvaluationBatch
from ser_lightning.data.datasets import CleanImages
from ser_lightning.evaluation.chosen import ChosenQueries, Images, enough, query_values
from ser_lightning.evaluation.metrics.diagnostics import (
    feature_std,
    rankme,
    spatial_variance_ratio,
)
from ser_lightning.evaluation.metrics.equivariance import place_of
from ser_lightning.evaluation.metrics.knn import knn_accuracy
from ser_lightning.evaluation.neighbours import Neighbours, some_neighbours
from ser_lightning.evaluation.per_image import GatheredRows, Rows
from ser_lightning.evaluation.shared_images import num_shared
from ser_lightning.numbers import NonNegativeInt, Positive, PositiveInt, checked

_PREPARATION = "images' preparation"
_KEPT = (
    "baseline", "baseline_name", "baseline_conditions", "latest", "history", "num_classes",
    "num_bank", "num_queries",
)  # fmt: skip


@checked
class OnlineEvaluation(L.Callback):
    """Logs k-NN accuracy, equivariance and collapse alarms at every validation.

    The module under training needs a `backbone` and two validation loaders of `EvaluationBatch`:
    the labelled bank, then the queries, sharded over processes. Every image counts once, and
    whatever a number is summed over is gathered in the order of the data set. What is computed of
    an image does not depend on the others of its pass: no operation mixes images, and a matrix
    product rounds a row alike in any company (`enough`). So the numbers are bit-equal on a CPU at
    any number of processes and any batch size.

    The images of the equivariance scores pass in float32, the others in the run's precision.

    With `num_sanity_val_steps=-1` the sanity check before the first step measures the starting
    weights in full. It is kept as `baseline`, also in checkpoints: a number without it says
    little. The last step of a fit is always measured, whatever the interval of the validations.

    All tokens of a map have something in common, in a random ViT nearly all that they are, so that
    its raw score of equivariance, `equivariance/<family>_<place>`, is about 0.8. The score to read
    is `equivariance/mean_centred/<family>_<place>`, without the mean token of the scored images.

    Attributes:
        baseline: metrics of the starting weights by name; empty until measured.
        baseline_name: what these weights are: "random init" or "given weights".
        baseline_conditions: how and of what the baseline was measured. A run that goes on under
            others drops it, with a warning: the difference would be that of the conditions.
        latest: metrics of the last validation by name.
        history: one {"step", "metrics"} for each validation of a fit.
        num_classes: classes among the labels, 0 where there are none.
        num_bank: images of the labelled bank.
        num_queries: images that were measured.
        neighbours: a few queries and what is nearest to them, as of the last validation; None
            where images would be their own neighbours, or there are too few.

    Args:
        k: Neighbours of the k-NN classification; the whole bank where it is smaller.
        temperature: Temperature of the neighbours' votes exp(similarity / temperature).
        num_equivariance_images: Images for the equivariance scores, spread evenly over the
            queries; 0 turns the scores off.
    """

    def __init__(
        self,
        k: PositiveInt = 20,
        temperature: Positive = 0.07,
        num_equivariance_images: NonNegativeInt = 512,
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.num_equivariance_images = num_equivariance_images
        self.baseline: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.baseline_name = "random init"
        self.baseline_conditions: dict[str, Any] = {}
        self.num_classes = self.num_bank = self.num_queries = 0
        self.neighbours: Neighbours | None = None
        self._shares_images = False
        self._goes_on = False  # and has measured nothing yet
        self._overlaps: dict[tuple[int, ...], bool] = {}
        self._bank = self._queries = Rows(0)
        self._chosen = ChosenQueries()

    def measured(self, backbone: SplitViT) -> list[str]:
        """The names that a validation logs, as far as the first one has told them."""
        return [*_on_bar(backbone, self.baseline), *(f"val/{name}" for name in self.baseline)]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _KEPT}  # a resumed run knows its baseline

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in _KEPT:  # whatever else a file says
            setattr(self, name, state_dict.get(name, getattr(self, name)))
        self._goes_on = True

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.baseline:  # known from a checkpoint; Lightning skips within an epoch only
            trainer.num_sanity_val_steps = 0

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        is_measured = self.history and self.history[-1]["step"] == trainer.global_step
        if is_measured or not trainer.enable_validation:
            return
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False  # killed between the last step and here: all of it
        trainer.validating = True
        loop.run()
        trainer.training = True

    @override
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        num_loaders = len(_loaders(trainer))
        if num_loaders != 2:
            raise ValueError(
                f"OnlineEvaluation got {num_loaders} validation loader(s); it needs two, the "
                "labelled bank and the queries"
            )
        backbone = _backbone(pl_module)
        self._shares_images = self._bank_and_queries_overlap(trainer)
        self._bank = Rows(backbone.width)
        self._queries = Rows(2 * backbone.width + 1)
        self._chosen = ChosenQueries()

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: EvaluationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        backbone, is_query = _backbone(pl_module), dataloader_idx == 1
        images = Images(batch.indices.cpu(), batch.label.cpu(), batch.pixels)
        if is_query:
            images = self._chosen.take(images, _num_queries(trainer), self.num_equivariance_images)
        if not len(images.indices):
            return
        with trainer.precision_plugin.forward_context():
            ((prefixes, embedding),) = backbone.encode([enough(images.pixels)])
            assert embedding is not None
            features = embedding[: len(images.indices)].float()
        if is_query:
            tokens = prefixes[0].tokens[: len(features)]
            self._queries.add(images.indices, images.label, query_values(features, tokens))
        else:
            self._bank.add(images.indices, images.label, features)

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        backbone = _backbone(pl_module)
        metrics = self._compute(backbone, pl_module.device)
        if trainer.sanity_checking:
            is_whole = trainer.num_sanity_val_batches == trainer.num_val_batches
            if is_whole and trainer.global_step == 0:
                self._keep_baseline(trainer, pl_module, metrics)
            return
        if self._goes_on and self.baseline_conditions and trainer.state.fn == "fit":
            self._drop_other_baseline(trainer)
        self._goes_on = False
        self.latest = metrics
        if trainer.state.fn == "fit":
            self.history.append({"step": trainer.global_step, "metrics": metrics})
            for callback in trainer.checkpoint_callbacks:  # what they hold of this step is old now
                is_guarded = getattr(callback, "saves_whole_steps", False)
                if is_guarded or trainer.accumulate_grad_batches == 1:  # others save amid a step
                    callback._last_global_step_saved = -1  # type: ignore[attr-defined]
        for name, value in metrics.items():
            stage = "test" if trainer.testing else "val"
            pl_module.log(f"{stage}/{name}", value, sync_dist=True, batch_size=1)
        for name, value in _on_bar(backbone, metrics).items():
            pl_module.log(name, value, prog_bar=True, logger=False, sync_dist=True, batch_size=1)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _compute(self, backbone: SplitViT, device: torch.device) -> dict[str, float]:
        """Turns the rows of all processes into numbers, equal on every process."""
        scores = self._chosen.measure(backbone, self._queries)
        self._chosen = ChosenQueries()
        bank, queries = self._bank.gather(), self._queries.gather()
        self._bank = self._queries = Rows(0)
        self.num_bank, self.num_queries = len(bank.label), len(queries.label)
        features, within, mean = queries.values.split([backbone.width, 1, backbone.width], dim=1)
        queries = queries._replace(values=features)
        self.neighbours = None if self._shares_images else some_neighbours(bank, queries)
        metrics = self._classify(bank, queries, device)
        metrics |= scores
        metrics["rankme"] = rankme(features.to(device))
        metrics["feature_std"] = feature_std(features)
        metrics["token_spatial_variance"] = spatial_variance_ratio(within[:, 0], mean)
        return metrics

    def _bank_and_queries_overlap(self, trainer: L.Trainer) -> bool:
        """Whether an image would be its own nearest neighbour; says so once for a pair of sets."""
        sets = _clean_sets(trainer)
        if len(sets) < 2:
            return False
        key = tuple(map(id, sets))
        if key not in self._overlaps:
            shared = num_shared(*((make.reader.images, make.positions) for make in sets))
            self._overlaps = {**self._overlaps, key: bool(shared)}
            if shared:
                rank_zero_warn(
                    f"{shared:,} of {_num_queries(trainer):,} images to evaluate are in the k-NN "
                    "bank too, where each is its own nearest neighbour: k-NN is left out; give an "
                    "evaluation split (a folder `val` beside `train`)"
                )
        return self._overlaps[key]

    def _classify(
        self, bank: GatheredRows, queries: GatheredRows, device: torch.device
    ) -> dict[str, float]:
        """Runs the k-NN classification, where every image has a label."""
        if self._shares_images:
            return {}
        labels = torch.cat([bank.label, queries.label])
        unlabelled = len(bank.label) == 0 or len(queries.label) == 0 or bool((labels < 0).any())
        self.num_classes = 0 if unlabelled else int(labels.max()) + 1
        if unlabelled:
            return {}
        k = min(self.k, len(bank.label))
        accuracy = knn_accuracy(
            bank.values.to(device), bank.label, queries.values, queries.label, k, self.temperature
        )[k]
        return {"knn_top1": accuracy.top1, "knn_top5": accuracy.top5}

    def _keep_baseline(
        self, trainer: L.Trainer, pl_module: L.LightningModule, metrics: dict[str, float]
    ) -> None:
        """Keeps the numbers of the starting weights; pl_module.log is off at this point."""
        self.baseline = metrics
        self.baseline_conditions = self._conditions(trainer)
        backbone = _backbone(pl_module)
        is_given = backbone.weights is not None
        self.baseline_name = "given weights" if is_given else "random init"
        for logger in trainer.loggers:  # step 0 of the same curves
            logger.log_metrics({f"val/{k}": v for k, v in metrics.items()}, step=0)
            logger.save()
        shown = {"k-NN top-1": "knn_top1", "turns": _turns(backbone), "RankMe": "rankme"}
        numbers = ", ".join(f"{w} {metrics[n]:.3g}" for w, n in shown.items() if n in metrics)
        title = self.baseline_name.capitalize()
        pl_module.print(f"{title}, {self.num_queries:,} images: {numbers}")

    def _drop_other_baseline(self, trainer: L.Trainer) -> None:
        """Drops a baseline that was measured under other conditions, and says which."""
        now = self._conditions(trainer)
        before = {_PREPARATION: now[_PREPARATION]} | self.baseline_conditions
        other = [
            f"{name} {before.get(name)}, now {value}"
            for name, value in now.items()
            if before.get(name) != value
        ]
        if not other:
            return
        rank_zero_warn(
            f"The {self.baseline_name} was measured otherwise than this run goes on ("
            f"{'; '.join(other)}): it is left out of the tables, and stays at step 0 of the curves"
        )
        self.baseline, self.baseline_conditions = {}, {}

    def _conditions(self, trainer: L.Trainer) -> dict[str, Any]:
        """What a number of this callback depends on besides the weights, in plain values.

        Names of all images are hashed: once in a fit.
        """
        return {
            "bank": self.num_bank,
            "queries": self.num_queries,
            "k": self.k,
            "temperature": self.temperature,
            "equivariance images": self.num_equivariance_images,
            "images' hashes": [make.reader.images.listing()[:8] for make in _clean_sets(trainer)],
            _PREPARATION: [repr(make.clean) for make in _clean_sets(trainer)],
        }


def _turns(backbone: SplitViT) -> str:
    """Name of the score that a bar has room for."""
    return f"equivariance/mean_centred/rotation_{place_of(backbone.layer, backbone.depth)}"


def _on_bar(backbone: SplitViT, metrics: dict[str, float]) -> dict[str, float]:
    """What a bar shows of the metrics, by short names."""
    names = {"knn": "knn_top1", "turns": _turns(backbone)}
    return {short: metrics[name] for short, name in names.items() if name in metrics}


def _backbone(pl_module: L.LightningModule) -> SplitViT:
    backbone = pl_module.backbone
    assert isinstance(backbone, SplitViT), "OnlineEvaluation needs a module with a SplitViT"
    return backbone


def _loaders(trainer: L.Trainer) -> list[Any]:
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return loaders if isinstance(loaders, list) else [loaders]


def _clean_sets(trainer: L.Trainer) -> list[CleanImages]:
    made = [getattr(loader.dataset, "make", None) for loader in _loaders(trainer)]
    return [make for make in made if isinstance(make, CleanImages)]


def _num_queries(trainer: L.Trainer) -> int:
    """Number of queries over all processes."""
    return len(_loaders(trainer)[1].dataset)
