"""What runs measured while training: the summary of one, and a row for each of several."""

from ser_lightning.reporting.summary import RunCurve, online_table, summary_table

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
        "                                                       random init  trained",
        "-" * 75,
        "k-NN top-1 (chance 10.0 %)                                  31.2 %   60.0 %",
        "k-NN top-5 (chance 50.0 %)                                  80.0 %   95.0 %",
        "equivariance, rotation block 3 (1 is exact)                  0.700    0.900",
        "raw equivariance, rotation block 3 (1 is exact)              0.801    0.950",
        "raw equivariance, rotation final (1 is exact)                    -    0.910",
        "RankMe (dimensions in use, at most 64)                           -     40.3",
        "feature std (0 is collapsed, 0.1250 is spread out)               -   0.0123",
        "token spatial variance (0 is a map without structure)            -    0.400",
        "something_new                                                    -    1.000",
    ]


def test_chance_of_the_best_five_is_at_most_certain():
    table = summary_table(BEFORE, AFTER, num_classes=3)
    assert "chance 33.3 %" in table
    assert "chance 100.0 %" in table


def test_without_classes_there_is_no_chance_level():
    assert "chance" not in summary_table(BEFORE, AFTER)


def test_metrics_measured_only_before_are_kept():
    lines = summary_table({"rankme": 3.0}, {}).splitlines()
    assert lines[-1].split() == ["RankMe", "(dimensions", "in", "use)", "3.0", "-"]


def test_without_a_baseline_there_is_no_column_for_it():
    assert summary_table({}, {"rankme": 3.0}).splitlines()[0].split() == ["trained"]


def test_online_metrics_stand_in_rows_with_random_init_in_brackets():
    before = {
        "knn_top1": 31.25,
        "knn_top5": 80.0,
        "equivariance/mean_centred/rotation_block3": 0.8012,
    }
    after = {
        "knn_top1": 60.0,
        "knn_top5": 95.0,
        "equivariance/mean_centred/rotation_block3": 0.95,
        "equivariance/rotation_final": 0.91,
        "rankme": 40.26,
        "feature_std": 0.0123456,
        "something_new": 1.0,
    }
    other = {"knn_top1": 70.0, "rankme": 12.0}
    table = online_table(
        [RunCurve("a", [0, 5], [before, after]), RunCurve("b", [0, 10], [{}, other])]
    )
    assert table.header == ("run", "steps", "k-NN top-1", "eq. rotation", "RankMe", "feature std")
    assert [row.cells for row in table.rows] == [
        ("a", "5", "60.0 % (31.2 %)", "0.950 (0.801)", "40.3 (-)", "0.0123 (-)"),
        ("b", "10", "70.0 % (-)", "-", "12.0 (-)", "-"),
    ]
    assert table.caption == "In brackets: the same before training."
