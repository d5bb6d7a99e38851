"""Every number that is measured has words, and no two have the same."""

import pytest

from ser_lightning.corruptions import CORRUPTIONS, PERTURBATIONS
from ser_lightning.reporting.paper import COLUMNS
from ser_lightning.results.measures import describe, distinct, place

WRITTEN = [  # by the stages, and by the evaluation during training
    *("top1_1000way", "top1_last_epoch", "top1_ema", "top1_k20", "top1_k10", "top5_k20"),
    *("top1_k20_T0.07", "top5_k20_T0.1", "knn_top1", "knn_top5", "top1/clean"),
    *("top1/avg_without_frost", "top5/avg", "all_frames_right/avg", "all_frames_right/snow"),
    *(f"flip_probability/{name}" for name in (*PERTURBATIONS, "avg")),
    *(f"top5_distance/{name}" for name in (*PERTURBATIONS, "avg")),
    *(f"top{k}/{name}" for k in (1, 5) for name in CORRUPTIONS),
    *("mce", "relative_mce", "mfr", "mt5d", "mce_vs_my_run", "relative_mce_vs_my_run"),
    *(
        f"equivariance/{row}{family}_{at}"
        for row in ("", "mean_centred/", "no_action/", "random_init/", "random_init_mean_centred/")
        for family in ("rotation", "flip", "scale")
        for at in ("block0", "block11", "final")
    ),
    *(
        f"equivariance/{row}turn{angle}_{at}"
        for row in ("", "mean_centred/", "no_action/", "random_init/", "random_init_mean_centred/")
        for angle in ("45", "22.5")
        for at in ("block3", "final")
    ),
    *(
        f"lee/{row}{name}_{at}"
        for row in ("", "relative/", "random_init/", "random_init_relative/", "no_action/")
        for name in ("translation_x", "rotation")
        for at in ("block0", "block11", "final", "cls")
        if (row, at) != ("no_action/", "cls")
    ),
    *("purity", "random_init/purity", "purity_chance", "purity/tabby_cat"),
    *(f"{init}flip_layer3{mode}" for init in ("", "random_init/") for mode in ("", "_single")),
    *("rankme", "feature_std", "token_spatial_variance", "uniformity"),
    *("lidar_crop", "lidar_invertible", "alignment_crop", "alignment_invertible"),
    *(f"{init}r2/{what}" for init in ("", "random_init/") for what in ("rotation", "colour")),
    *("r2/translation_object", "r2/translation_base", "constant/miou"),
    *(f"{init}miou{at}" for init in ("", "random_init/") for at in ("", "_layer3")),
    *("iou/background", "iou_layer3/background"),
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
]


def test_every_metric_has_words_of_its_own():
    metrics = {*WRITTEN, *(column.source[2] for column in COLUMNS)}
    titles = {describe(metric).title.removesuffix("my_run") for metric in metrics}
    assert len(titles) == len(metrics)
    assert not [title for title in titles if "_" in title or "/" in title or "{" in title]


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("top1", "top-1"),
        ("top1_k20", "20-NN top-1"),
        ("top1/gaussian_noise", "top-1, gaussian noise"),
        ("relative_mce_vs_my_run", "relative mCE against my_run"),
        ("equivariance/flip_final", "raw equivariance, flip final"),
        ("equivariance/mean_centred/flip_block3", "equivariance, flip block 3"),
        ("equivariance/turn22.5_final", "raw equivariance, 22.5 degrees final"),
        ("lee/relative/translation_x_block3", "relative LEE, translation x block 3"),
        ("lee/random_init/rotation_cls", "LEE, rotation cls, random init"),
        ("purity/tabby cat", "k-NN purity, tabby cat"),
        ("equivariance/no_action/flip_block3", "raw equivariance, flip block 3, no action"),
        (
            "equivariance/random_init_mean_centred/flip_final",
            "equivariance, flip final, random init",
        ),
        ("miou_layer3", "mIoU, block 3"),
        ("random_init/flip_layer3", "flip told after block 3, random init"),
        ("map_50", "mAP at IoU 0.50"),
        ("of_another_version", "of_another_version"),
    ],
)
def test_words(metric, title):
    assert describe(metric).title == title


def test_random_init_is_shown_like_what_it_is_compared_with():
    for name in ("purity", "r2/rotation", "miou_layer3"):
        shown, trained = describe(f"random_init/{name}"), describe(name)
        assert (shown.digits, shown.unit) == (trained.digits, trained.unit)
        assert (shown.heading, shown.online) == ("", "")


def test_main_metrics_have_headings():
    headings = [describe(metric).heading for metric in ("top1", "top5", "top1_k20", "top1/avg")]
    assert headings == ["{stage} top-1", "", "20-NN top-1", "{stage} top-1"]
    assert describe("equivariance/flip_final").heading == "raw eq. flip"
    assert describe("equivariance/mean_centred/flip_final").heading == "eq. flip"
    assert describe("equivariance/flip_block3").heading == ""
    assert place("top1") < place("top1_k20") < place("equivariance/flip_final") < place("new")


def test_class_whose_name_reads_like_a_ratio_is_a_class():
    assert describe("purity/cat_vs_dog") == describe("purity/cat")._replace(
        title="k-NN purity, cat vs dog"
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["crane", "crane", "maillot"], ["crane_0", "crane_1", "maillot"]),
        (["a_b", "a_b", "a_b_0"], ["a_b_0_", "a_b_1", "a_b_0"]),
        (["", "0", "1"], ["0_", "0", "1"]),
        (["", "", "1"], ["0", "1_", "1"]),
    ],
)
def test_names_of_classes_are_made_different(names, expected):
    assert distinct(names) == expected
