"""A run's row is told from its configuration."""

from pathlib import Path

import pytest
import yaml

from results.result_records import config, record, run_folder
from ser_lightning.reporting.paper import make_subject
from ser_lightning.reporting.runs import describe_run

CONFIGS = Path(__file__).parents[2] / "configs"


def described(folder, configuration, **changes):
    run_folder(folder, [], configuration)
    return describe_run(record(**changes), folder)


@pytest.mark.parametrize(
    ("file", "base", "method", "views"),
    [
        ("moco.yaml", "moco_v3", "MoCo-v3", "2"),
        ("moco_ser.yaml", "moco_v3", "SER", "2"),
        ("moco_ser_2plus4.yaml", "moco_v3", "SER", "2+4"),
        ("barlow.yaml", "barlow_twins", "Barlow Twins", "2"),
        ("barlow_ser.yaml", "barlow_twins", "SER", "2"),
    ],
)
def test_shipped_configurations_are_the_papers_rows(tmp_path, file, base, method, views):
    run = described(tmp_path, yaml.safe_load((CONFIGS / file).read_text()))
    assert run.subject == make_subject(base, method, views, {})
    assert run.departures == ()


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"layer": 9}, {"equiv_layer": 9}),
        ({"weight": 0.0}, {"lambda": 0}),
        ({"local": {"num": 4, "size": 96}}, {}),
    ],
)
def test_settings_that_the_paper_varies(tmp_path, changes, settings):
    views = "2+4" if "local" in changes else "2"
    run = described(tmp_path, config(**changes))
    assert run.subject == make_subject("moco_v3", "SER", views, settings)


def test_groups_and_ratio_are_settings(tmp_path):
    changed = config()
    group = {"class_path": "GroupSampler", "init_args": {"rotation": False, "flip": True}}
    changed["data"]["invertible"]["init_args"] = {"ratio": 0.02, "group": group}
    subject = described(tmp_path, changed).subject
    assert subject.settings == (("groups", "flip scale"), ("rho", 0.02))


@pytest.mark.parametrize(
    ("regularizer", "method", "views"),
    [
        ("EquiMod", "EquiMod", "3"),
        ("ESSL", "E-SSL", "2+4"),
        ("STL", "STL", "2"),
        ("AugSelf", "AugSelf", "2"),
    ],
)
def test_views_of_add_ons_are_counted_as_in_the_paper(tmp_path, regularizer, method, views):
    run = described(tmp_path, config(regularizer=regularizer, layer=12))
    assert run.subject == make_subject("moco_v3", method, views, {})


@pytest.mark.parametrize(("regularizer", "views"), [("EquiMod", "3+4"), ("ESSL", "2+8")])
def test_views_of_add_ons_add_to_local_ones(tmp_path, regularizer, views):
    local = {"num": 4, "size": 96}
    run = described(tmp_path, config(regularizer=regularizer, layer=12, local=local))
    assert run.subject.views == views


def per_layer(names, layers, weight=1.0, **options):
    """A configuration with an add-on at each of several layers."""
    parts = [{"class_path": f"x.{name}", "init_args": {"weight": 1.0}} for name in names]
    changed = config(layer=layers)
    arguments = changed["model"]["init_args"]
    arguments["backbone"]["init_args"]["vit_options"] = options
    regularizer = {"weight": weight, "regularizers": parts}
    arguments["regularizer"] = {"class_path": "x.PerLayer", "init_args": regularizer}
    return changed


def test_ser_at_every_layer_is_the_papers_row(tmp_path):
    changed = per_layer(["SERRegularizer"] * 12, list(range(1, 13)), 0.0833)
    expected = make_subject("moco_v3", "SER", "2", {"equiv_layer": "all"})
    assert described(tmp_path / "a", changed).subject == expected
    small = per_layer(["SERRegularizer"] * 4, [1, 2, 3, 4], 0.25, depth=4)
    assert described(tmp_path / "b", small).subject == expected


def test_several_layers_are_a_readable_text(tmp_path):
    subject = described(tmp_path, per_layer(["SERRegularizer"] * 2, [3, 0.5])).subject
    assert subject.label() == "SER on MoCo-v3, 2 views, equiv_layer 3 6, lambda 2"
    one = described(tmp_path / "one", per_layer(["SERRegularizer"], [3])).subject
    assert one.settings == ()


def test_different_add_ons_are_named_together(tmp_path):
    subject = described(tmp_path, per_layer(["EquiMod", "SERRegularizer"], [3, 12])).subject
    assert (subject.method, subject.views) == ("EquiMod + SER", "3")


def test_departures_from_the_papers_pretraining_are_listed(tmp_path):
    changed = config(regularizer=None)
    changed["trainer"] |= {"max_epochs": 5, "max_steps": 10}
    changed["data"] |= {"global_batch_size": 256, "source": {"class_path": "x.GeneratedShapes"}}
    changed["data"]["invertible"] = {"ratio": 0.01}
    changed["model"]["init_args"]["backbone"]["init_args"]["vit_options"] = {"depth": 4}
    run = described(tmp_path, changed)
    assert run.departures == (
        "epochs 5 (paper 100)",
        "global batch size 256 (paper 2048)",
        "pretrained on GeneratedShapes (paper imagenet1k)",
        'backbone options {"depth": 4}',
        "stopped after 10 steps",
        "an invertible sub-batch without a regularizer",
    )


def test_other_images_sizes_and_starts_are_departures(tmp_path):
    changed = config()
    changed["data"]["source"] = {"class_path": "ImageFolder", "init_args": {"root": "/my/cifar10"}}
    backbone = changed["model"]["init_args"]["backbone"]["init_args"]
    backbone |= {"image_size": 32, "weights": "/w/mae.pth"}
    found = described(tmp_path, changed).departures
    assert "image size 32 (paper 224)" in found
    assert "pretrained on the folder cifar10 (paper imagenet1k)" in found
    assert "started from the weights mae.pth" in found
    changed["data"]["source"]["init_args"]["root"] = "/data/ILSVRC2012/"
    assert not [note for note in described(tmp_path, changed).departures if "folder" in note]


def test_a_layer_as_a_share_of_the_depth_is_the_papers_row(tmp_path):
    assert described(tmp_path, config(layer=0.25)).subject == described(tmp_path, config()).subject


def test_runs_that_differ_in_seed_and_hardware_share_a_configuration(tmp_path):
    other = config()
    other["seed_everything"] = 1
    other["trainer"]["devices"] = 1
    other["data"]["num_workers"] = 0
    longer = config()
    longer["trainer"]["max_epochs"] = 300
    first, second, third = (
        described(tmp_path / str(i), c).configuration
        for i, c in enumerate((config(), other, longer))
    )
    assert first == second
    assert first != third


def test_a_configuration_changed_on_resume_counts(tmp_path):
    before = described(tmp_path, config())
    (tmp_path / "fit.step100.yaml").write_text("model: {}")
    after = described(tmp_path, config())
    assert before.configuration != after.configuration
    assert "configuration changed while training" in after.departures


def test_seeds_that_went_on_with_the_same_changes_share_a_configuration(tmp_path):
    found = []
    for seed in (0, 1):
        longer = config() | {"seed_everything": seed, "run_dir": f"runs/{seed}", "ckpt_path": "x"}
        longer["trainer"]["max_epochs"] = 300
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "fit.step100.yaml").write_text(yaml.safe_dump(longer))
        found.append(described(tmp_path / str(seed), config()).configuration)
    assert found[0] == found[1]
    assert found[0] != described(tmp_path / "2", config()).configuration


@pytest.mark.parametrize(("layer", "expected"), [(0.25, 6), ([0.25, 0.5], "6 12"), (6, 6)])
def test_layer_is_a_share_of_the_named_models_depth(tmp_path, layer, expected):
    large = config(layer=layer)
    large["model"]["init_args"]["backbone"]["init_args"]["name"] = "vit_large_patch16_224"
    run = described(tmp_path, large)
    assert dict(run.subject.settings)["equiv_layer"] == expected
    assert "backbone vit_large_patch16_224 (paper vit_small_patch16_224)" in run.departures


def test_layers_of_the_same_number_share_a_configuration(tmp_path):
    found = [described(tmp_path / str(n), config(layer=n)).configuration for n in (0.25, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_shortened_epochs_other_warm_ups_and_angles_are_departures(tmp_path):
    changed = config()
    changed["trainer"]["limit_train_batches"] = 2
    changed["model"]["init_args"]["warmup_epochs"] = 0
    changed["data"]["invertible"]["init_args"]["group"] = {"angle": 45.0}
    assert described(tmp_path, changed).departures == (
        "epochs of warm-up 0 (paper 10)",
        "of each epoch 2 batches",
        "turns by up to 45 degrees",
    )
    for limit, words in ((0.25, "25 % of the batches"), (1, "1 batch")):
        changed["trainer"]["limit_train_batches"] = limit
        assert f"of each epoch {words}" in described(tmp_path, changed).departures
    changed["trainer"]["limit_train_batches"] = 1.0
    assert "of each" not in "".join(described(tmp_path, changed).departures)


def test_record_overrides_the_configuration(tmp_path):
    run = described(tmp_path, config(), run={"views": "2+4", "rho": 0.02, "configuration": "x"})
    assert run.subject == make_subject("moco_v3", "SER", "2+4", {"rho": 0.02})
    assert run.configuration == "x"


def test_run_without_configuration_has_its_folders_name(tmp_path):
    run = described(tmp_path / "mine", None)
    assert run.subject.label() == "mine"
    told = described(tmp_path / "mine", None, run={"base": "dino", "method": "DINO", "views": "2"})
    assert told.subject == make_subject("dino", "DINO", "2", {})


def test_random_weights_are_no_row_of_the_paper(tmp_path):
    run = described(tmp_path, config(), checkpoint=None, checkpoint_sha256=None)
    assert run.subject.label() == "random initialisation"


def test_another_network_is_no_row_of_the_paper(tmp_path):
    none = {"checkpoint": None, "checkpoint_sha256": None}
    run = described(tmp_path, config(), network="alexnet", **none)
    assert run.subject.label() == "alexnet"


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("a: 1", "no sections"), ("[]", "no sections")]
)
def test_broken_configurations_are_named(tmp_path, text, message):
    (tmp_path / "fit.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        described(tmp_path, None)
