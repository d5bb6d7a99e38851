"""One rank's pass of the detection stage over its share of a tiny COCO."""

import torch

from ser_lightning.data.benchmarks.detection import DetectionDataModule
from ser_lightning.evaluation.detector import build_detector
from ser_lightning.evaluation.metrics.average_precision import mean_average_precision
from ser_lightning.evaluation.stages.detection import DetectionStage
from ser_lightning.sources.coco import CocoDetection


def rank_result(checkpoint, coco):
    """Images and metrics of an untrained detector, as this rank has them."""
    stage = DetectionStage(checkpoint)
    torch.manual_seed(0)
    stage.detector = build_detector("fcos", stage.backbone, 91, (0.5,) * 3, (0.2,) * 3, 32)
    stage.detector.score_thresh = 0.0  # untrained: anything counts
    stage.eval()
    sizes = {"evaluation_batch_size": 1, "test_short_side": 64, "long_side": 96}
    data = DetectionDataModule(CocoDetection(coco), num_workers=0, **sizes)
    data.setup("test")
    images = data.images("test")
    stage.on_test_epoch_start()
    with torch.no_grad():
        for number, batch in enumerate(data.test_dataloader()):
            stage.test_step(batch, number)
    stage.on_test_epoch_end()
    truth = [images.boxes(index) for index in range(len(images))]
    return {
        "measured": stage.measured.tolist(),
        "metrics": mean_average_precision(stage.detections, truth),
    }
