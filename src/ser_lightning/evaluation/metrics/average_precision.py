"""Mean average precision of boxes, as COCO defines it."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from ser_lightning.sources.coco import Boxes

# COCO's own, in double precision: the metric's defaults are rounded to single precision, and a
# recall of 0.6 is then below the threshold 0.6. Source: pycocotools, Params.
_IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
_RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101).tolist()

METRICS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")


def mean_average_precision(detections: Tensor, truth: Sequence[Boxes]) -> dict[str, float]:
    """Compares detections with the annotations of all images.

    Args:
        detections: (N, 7) float: position of the image in `truth`, four corners in pixels of the
            original image, score, category id.
        truth: the annotations of each image, crowds included, in the same pixels and ids.

    Returns:
        `METRICS`, in [0, 1]: the mean over categories, and over IoU 0.5 to 0.95 unless the name
        says which. Sizes that no annotated object has are left out.
    """
    detections = detections[detections[:, 0].argsort(stable=True)].double()
    counts = detections[:, 0].long().bincount(minlength=len(truth)).tolist()
    predicted = [
        {"boxes": rows[:, 1:5], "scores": rows[:, 5], "labels": rows[:, 6].long()}
        for rows in detections.split(counts)
    ]
    annotated = [
        {
            "boxes": boxes.corners.double(),
            "labels": boxes.labels,
            "iscrowd": boxes.crowd.long(),
            "area": boxes.area.double(),
        }
        for boxes in truth
    ]
    metric = MeanAveragePrecision(
        iou_thresholds=_IOU_THRESHOLDS,
        rec_thresholds=_RECALL_THRESHOLDS,
        backend="faster_coco_eval",
        sync_on_compute=False,
    )
    metric.update(predicted, annotated)
    computed = metric.compute()
    found = {name: float(computed[name]) for name in METRICS}
    return {name: value for name, value in found.items() if value >= 0}
