"""The paper's numbers are complete, and its rows are told apart."""

import pytest

from ser_lightning.reporting.paper import (
    COLUMNS,
    RESULTS_FILE,
    make_subject,
    paper_tables,
    pretraining,
)

SER = make_subject("moco_v3", "SER", "2", {})


def test_numbers_of_ser_in_table_1():
    row = paper_tables()["table1"].row(SER)
    assert row.values["imagenet1k_top1"] == 69.28
    assert row.std == {"imagenet1k_top1": 0.01, "imagenet1k_top5": 0.02}


def test_empty_cells_are_not_there():
    stl = paper_tables()["table1"].row(make_subject("moco_v3", "STL", "2", {}))
    assert "3diebench_top1" not in stl.values


def test_no_table_has_two_rows_of_one_subject():
    for table in paper_tables().values():
        subjects = [row.subject for row in table.rows]
        assert len(set(subjects)) == len(subjects)


def test_every_column_of_the_paper_has_a_source_and_only_those():
    measured = {(m.table, m.column) for m in COLUMNS}
    printed = {
        (key, column)
        for key, table in paper_tables().items()
        for row in table.rows
        for column in row.values
    }
    assert printed - measured == {("table4", "equiv_layer"), ("table6", "equiv_layer")}
    assert measured <= printed


def test_a_source_has_one_column_in_a_table():
    keys = [(m.table, m.source) for m in COLUMNS]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("key", "settings", "value"),
    [
        ("table4", {"equiv_layer": 9}, 68.72),
        ("table4", {"equiv_layer": 3}, 69.28),
        ("table5", {"lambda": 0.0}, 68.82),
        ("table5", {"lambda": 1.0, "rho": 0.01}, 69.28),
        ("table8b", {"lambda": 0}, 68.82),
        ("table9", {"groups": "rotation flip scale"}, 69.28),
    ],
)
def test_rows_are_found_by_their_settings(key, settings, value):
    row = paper_tables()[key].row(make_subject("moco_v3", "SER", "2", settings))
    assert row.values["imagenet1k_top1"] == value


def test_ablated_groups_have_a_row_of_their_own():
    rows = paper_tables()["table9"].rows
    assert rows[1].subject == make_subject("moco_v3", "SER", "2", {"groups": "flip scale"})
    assert rows[1].values == {}


def test_usual_settings_depend_on_method_and_base():
    usual = make_subject("dino", "SER", "2", {"lambda": 0.3})
    assert usual == paper_tables()["table2"].rows[3].subject
    assert make_subject("dino", "SER", "2", {"lambda": 1.0}).settings == (("lambda", 1.0),)
    plain = {"equiv_layer": 3, "rho": 0.05, "lambda": 2.0}
    assert make_subject("moco_v3", "MoCo-v3", "2", plain).settings == ()


def test_labels():
    assert SER.label() == "SER on MoCo-v3, 2 views"
    assert make_subject("dino", "DINO", "2", {}).label() == "DINO, 2 views"
    varied = make_subject("SimCLR", "SER", "2+4", {"rho": 0.05, "lambda": 2.0})
    assert varied.label() == "SER on SimCLR, 2+4 views, lambda 2, rho 0.05"


def test_pretraining_of_the_paper():
    assert pretraining()["epochs"] == 100
    assert pretraining()["backbone"] == "vit_small_patch16_224"


def test_results_file_is_ascii():
    assert RESULTS_FILE.read_bytes().isascii()
