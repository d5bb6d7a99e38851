"""Configurations of the same weights have one hash, whichever version wrote them."""

import inspect
import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from results.result_records import config, run_folder
from ser_lightning.checkpoints import read_config
from ser_lightning.data import ImageFolder
from ser_lightning.data.photometric import MOCO_VIEW_1, MOCO_VIEW_2
from ser_lightning.reporting.groups import group_folders
from ser_lightning.reporting.same_weights import DEFAULT_VIEWS, weights_hash

STORED = yaml.safe_load(
    (Path(__file__).parents[1] / "runtime" / "fit_0.1.0.yaml").read_text(encoding="utf-8")
)


def hash_of(configuration):
    return weights_hash(read_config(yaml.safe_dump(configuration)), [])


def todays_words(**changes):
    """What this version writes of the configuration that version 0.1.0 stored."""
    today = deepcopy(STORED)
    today["model"]["class_path"] = "ser_lightning.objectives.MoCoV3"
    arguments = today["model"]["init_args"]
    arguments["backbone"]["init_args"]["cls_layer"] = "auto"
    arguments["regularizer"]["init_args"] |= {"width": None, "hidden": None, **changes}
    today["data"]["invertible"]["init_args"] |= {"view_1": None, "view_2": None}
    today["data"] |= {"max_bad_share": 0.01}
    return today


def test_a_run_of_version_0_1_0_and_a_new_seed_of_its_configuration_are_one_group(tmp_path):
    old = run_folder(tmp_path / "a_seed0", [], STORED)
    new = run_folder(tmp_path / "a_seed1", [], todays_words() | {"seed_everything": 1})
    (group,) = group_folders([old, new])
    assert group.folders == (old, new)


@pytest.mark.parametrize("written", ["width", "hidden"])
def test_what_may_be_left_out_may_be_written(written):
    given = STORED["model"]["init_args"]["regularizer"]["init_args"][written]
    assert hash_of(todays_words(**{written: given})) == hash_of(STORED)


@pytest.mark.parametrize("is_on", [False, True])
def test_activations_computed_again_are_the_same_weights(is_on):
    today = todays_words()
    today["model"]["init_args"]["backbone"]["init_args"]["grad_checkpointing"] = is_on
    assert hash_of(today) == hash_of(STORED)


@pytest.mark.parametrize("change", [{"hidden": 64}, {"temperature": 0.5}, {"weight": 0.5}])
def test_a_run_of_version_0_1_0_is_no_seed_of_another_configuration(change):
    assert hash_of(todays_words(**change)) != hash_of(STORED)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224"])
def test_default_hidden_width_is_that_of_the_named_model(name):
    def changed(hidden):
        made = config()
        arguments = made["model"]["init_args"]
        arguments["backbone"]["init_args"]["name"] = name
        arguments["regularizer"]["init_args"]["hidden"] = hidden
        return hash_of(made)

    default = 384 if "tiny" in name else 512
    assert changed(default) == changed(None) != changed(256)


def test_without_an_add_on_automatic_is_the_input():
    def changed(cls_layer, regularizer):
        made = config(regularizer=regularizer)
        made["model"]["init_args"]["backbone"]["init_args"]["cls_layer"] = cls_layer
        return hash_of(made)

    assert changed("auto", None) == changed(0, None) != changed(None, None)
    ser = "SERRegularizer"
    assert changed("auto", ser) == changed(None, ser) != changed(0, ser)


@pytest.mark.parametrize("name", ["gradient_clip_val", "gradient_clip_algorithm", "precision"])
def test_a_setting_of_the_trainer_that_changes_a_step_counts(name):
    changed = config()
    changed["trainer"][name] = "another"
    assert hash_of(changed) != hash_of(config())


def test_new_settings_of_image_files_at_their_defaults_are_no_other_configuration():
    defaults = inspect.signature(ImageFolder).parameters
    new = {key: defaults[key].default for key in ("background", "labels", "max_pixels", "upright")}
    old = config()
    old["data"]["source"]["init_args"] = {"root": "images"}
    today = deepcopy(old)
    today["data"]["source"]["init_args"] |= {**new, "background": list(new["background"])}
    assert hash_of(old) == hash_of(today)
    today["data"]["source"]["init_args"]["labels"] = False
    assert hash_of(old) != hash_of(today)


def test_colours_that_are_those_of_crops_left_out_are_no_other_configuration():
    usual = {"view_1": asdict(MOCO_VIEW_1), "view_2": asdict(MOCO_VIEW_2)}
    assert json.loads(json.dumps(usual)) == DEFAULT_VIEWS
    today = config()
    today["data"]["crop"] = None
    old = deepcopy(today)
    old["data"]["invertible"]["init_args"] |= DEFAULT_VIEWS
    assert hash_of(old) == hash_of(today)


def test_modules_of_our_classes_do_not_count():
    moved = config()
    moved["model"]["class_path"] = "ser_lightning.objectives.moco_v3.MoCoV3"
    assert hash_of(moved) == hash_of(config())
    moved["model"]["class_path"] = "mine.MoCoV3"
    assert hash_of(moved) != hash_of(config())
