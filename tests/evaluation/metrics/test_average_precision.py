"""Mean average precision against a naive loop, and what crowds and areas do."""

import numpy as np
import pytest
import torch

from ser_lightning.evaluation.metrics import average_precision
from ser_lightning.evaluation.metrics.average_precision import mean_average_precision
from ser_lightning.sources.coco import Boxes

pytest.importorskip("faster_coco_eval")


def truth(corners, labels, crowd=None, area=None):
    corners = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    crowd = torch.tensor(crowd or [False] * len(labels), dtype=torch.bool)
    area = sides.prod(1) if area is None else torch.tensor(area, dtype=torch.float32)
    return Boxes(corners, torch.tensor(labels, dtype=torch.int64), crowd, area)


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return float(width * height / (sum(areas) - width * height))


def naive_precision(detections, images, category, threshold):
    """COCO's average precision of one category: greedy matches, 101 recall levels."""
    rows = [row.tolist() for row in detections if int(row[6]) == category]
    rows.sort(key=lambda row: -row[5])
    boxes = [image.corners[image.labels == category].tolist() for image in images]
    num_objects, used, hits = sum(map(len, boxes)), set(), []
    for row in rows:
        image = int(row[0])
        free = [i for i in range(len(boxes[image])) if (image, i) not in used]
        best = max(free, key=lambda i: iou(row[1:5], boxes[image][i]), default=None)
        hit = best is not None and iou(row[1:5], boxes[image][best]) >= threshold
        if hit:
            used.add((image, best))
        hits.append(hit)
    points = [(sum(hits[:n]) / num_objects, sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
    levels = np.linspace(0, 1, 101).tolist()  # in float32 a recall of 0.6 would be below 0.6
    found = [max((p for r, p in points if r >= level), default=0.0) for level in levels]
    return sum(found) / 101


def random_case(seed):
    rng = torch.Generator().manual_seed(seed)
    images, rows = [], []
    for image in range(6):
        num = 0 if image == 2 else 3
        corner = 60 * torch.rand(num, 2, generator=rng)
        corners = torch.cat([corner, corner + 10 + 40 * torch.rand(num, 2, generator=rng)], 1)
        labels = torch.tensor([1, 90, 1][:num], dtype=torch.int64)
        images.append(truth(corners.tolist(), labels.tolist()))
        for box, label in zip(corners, labels, strict=True):
            for spread in (1.0, 4.0, 8.0):
                noisy = box + spread * torch.randn(4, generator=rng)
                noisy[2:] = torch.maximum(noisy[2:], noisy[:2] + 1)
                score = torch.rand(1, generator=rng)
                rows.append(torch.cat([torch.tensor([image]), noisy, score, label[None]]))
    return torch.stack(rows), images


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_naive_loop(seed):
    detections, images = random_case(seed)
    found = mean_average_precision(detections[torch.randperm(len(detections))], images)
    thresholds = [0.5 + 0.05 * i for i in range(10)]
    naive = [
        sum(naive_precision(detections, images, category, t) for category in (1, 90)) / 2
        for t in thresholds
    ]
    assert 0.1 < naive[0] < 0.95
    assert found["map_50"] == pytest.approx(naive[0], abs=1e-6)
    assert found["map_75"] == pytest.approx(naive[5], abs=1e-6)
    assert found["map"] == pytest.approx(sum(naive) / 10, abs=1e-6)


def test_recall_that_meets_a_level_counts_there():
    """The number of COCO's own code; with levels of single precision it is 0.83285."""
    boxes = [[100.0 * i, 0.0, 100.0 * i + 50, 50.0] for i in range(10)]
    order = [True] * 6 + [False] * 7 + [True] * 4
    hits, rows = iter(boxes), []
    for rank, hit in enumerate(order):
        corners = next(hits) if hit else [100.0 * rank, 500.0, 100.0 * rank + 50, 550.0]
        rows.append([0, *corners, 1 - rank / 20, 1])
    detections, images = torch.tensor(rows), [truth(boxes, [1] * 10)]
    found = mean_average_precision(detections, images)
    assert found["map_50"] == pytest.approx(0.83692, abs=5e-6)
    assert found["map_50"] == pytest.approx(naive_precision(detections, images, 1, 0.5), abs=1e-7)


def test_overlap_that_meets_a_threshold_counts_there():
    """Of ten thresholds, those up to an intersection over union of 0.55, 0.6, 0.7 and so on."""
    assert np.linspace(0.5, 0.95, 10).tolist() == average_precision._IOU_THRESHOLDS
    for number, width in enumerate((55, 60, 65, 70, 75, 80, 85, 90, 95), start=2):
        rows = torch.tensor([[0, 0.0, 0.0, width, 100.0, 0.9, 1]])
        found = mean_average_precision(rows, [truth([[0, 0, 100, 100]], [1])])
        met = sum(width / 100 >= threshold for threshold in average_precision._IOU_THRESHOLDS)
        assert met in (number - 1, number)  # 0.65 and the like are not exact
        assert found["map"] == pytest.approx(met / 10)


def test_perfect_detections_have_one_and_another_category_none():
    images = [truth([[0, 0, 20, 20], [30, 10, 60, 50]], [1, 90]), truth([], [])]
    right = torch.tensor([[0, 0, 0, 20, 20, 0.9, 1], [0, 30, 10, 60, 50, 0.8, 90]])
    assert mean_average_precision(right, images)["map"] == pytest.approx(1)
    wrong = right.clone()
    wrong[:, 6] = wrong[:, 6].flip(0)
    assert mean_average_precision(wrong, images)["map"] == 0
    assert mean_average_precision(torch.empty(0, 7), images)["map"] == 0


def test_detections_in_an_image_without_objects_count_as_errors():
    images = [truth([[0, 0, 20, 20]], [1]), truth([], [])]
    right = [0, 0, 0, 20, 20, 0.5, 1]
    false = [1, 0, 0, 20, 20, 0.9, 1]
    assert mean_average_precision(torch.tensor([right, false]), images)["map"] == pytest.approx(0.5)


def test_detections_in_a_crowd_are_neither_right_nor_wrong():
    corners = [[0, 0, 20, 20], [40, 40, 90, 90]]
    rows = torch.tensor(
        [[0, 50, 50, 60, 60, 0.9, 1], [0, 0, 0, 20, 20, 0.8, 1]]  # the first lies in the crowd
    )
    single = mean_average_precision(rows, [truth(corners, [1, 1])])
    crowd = mean_average_precision(rows, [truth(corners, [1, 1], crowd=[False, True])])
    assert crowd["map"] == pytest.approx(1)
    assert single["map"] < 0.6


def test_size_is_that_of_the_annotation_and_missing_sizes_are_left_out():
    corners, rows = [[0, 0, 40, 40]], torch.tensor([[0, 0, 0, 40, 40, 0.9, 1]])
    by_box = mean_average_precision(rows, [truth(corners, [1])])
    assert set(by_box) == {"map", "map_50", "map_75", "map_medium"}  # 32^2 < 1600 < 96^2
    by_area = mean_average_precision(rows, [truth(corners, [1], area=[900.0])])
    assert set(by_area) == {"map", "map_50", "map_75", "map_small"}
