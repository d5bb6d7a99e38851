"""The summary of an online evaluation as text."""

from ser_lightning.reporting import summary_table

BEFORE = {
    "knn_top1": 31.25,
    "knn_top5": 80.0,
    "equivariance/mean_centred/rotation_block3": 0.7,
    "equivariance/rotation_block3": 0.8012,
}
AFTER = {
    "knn_top1": 60.0,
    "knn_top5": 95.0,
    "equivariance/mean_centred/rotation_block3": 0.9,
    "equivariance/rotation_block3": 0.95,
    "equivariance/rotation_final": 0.91,
    "rankme": 40.26,
    "feature_std": 0.0123456,
    "token_spatial_variance": 0.4,
    "something_new": 1.0,
}


def test_table_has_both_columns_and_explains_each_number():
    assert summary_table(BEFORE, AFTER, num_classes=10, width=64).splitlines() == [
        "                                    random init  trained",
        "-" * 74,
        "k-NN top-1                               31.2 %   60.0 %  chance 10.0 %",
        "k-NN top-5                               80.0 %   95.0 %  chance 50.0 %",
        "equivariance, rotation block 3            0.700    0.900  1 is exact",
        "raw equivariance, rotation block 3        0.801    0.950  1 is exact",
        "raw equivariance, rotation final              -    0.910  1 is exact",
        "RankMe                                        -     40.3  of 64 dimensions",
        "feature std                                   -   0.0123  0.1250 at best",
        "token spatial variance                        -    0.400  0: no structure",
        "something_new                                 -    1.000",
    ]


def test_chance_of_the_best_five_is_at_most_certain():
    table = summary_table(BEFORE, AFTER, num_classes=3)
    assert "chance 33.3 %" in table
    assert "chance 100.0 %" in table


def test_without_classes_there_is_no_chance_level():
    assert "chance" not in summary_table(BEFORE, AFTER)


def test_metrics_measured_only_before_are_kept():
    lines = summary_table({"rankme": 3.0}, {}).splitlines()
    assert lines[-1].split() == ["RankMe", "3.0", "-", "dimensions", "in", "use"]
