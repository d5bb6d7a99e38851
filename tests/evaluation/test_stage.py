"""Whose weights a stage measures, and what keeps its numbers from being official."""

import pytest
import torch
import yaml

from ser_lightning.checkpoints import CHECKPOINT_KEY
from ser_lightning.data import Shapes
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.stage import Stage
from support import PATCH, TINY_VIT, tiny_backbone

MOCO = "ser_lightning.objectives.moco_v3.MoCoV3"
DINO = "ser_lightning.objectives.dino.DINO"


class Looking(Stage):
    """A stage that measures nothing."""

    name = "looking"

    def run(self, trainer, data, folder):
        """Gives no results."""
        return []


def write_checkpoint(path, objective):
    """A run's file: a student of zeros and a teacher of ones."""
    backbone = tiny_backbone()
    state = {
        f"{name}.vit.{key}": torch.full_like(value, fill)
        for name, fill in (("backbone", 0.0), ("momentum_backbone", 1.0))
        for key, value in backbone.vit.state_dict().items()
    }
    sizes = {"image_size": 16, "patch_size": PATCH, "layer": 2, "vit_options": TINY_VIT}
    arguments = {"name": "vit_tiny_patch16_224", **sizes}
    model = {"class_path": objective, "init_args": {"backbone": {"init_args": arguments}}}
    record = {CHECKPOINT_KEY: {"config": yaml.safe_dump({"model": model})}}
    torch.save({"state_dict": state, **record}, path)
    return str(path)


@pytest.mark.parametrize(
    ("objective", "branch"),
    [
        (DINO, "momentum"),
        (MOCO, "online"),
        ("ser_lightning.objectives.byol.BYOL", "online"),
        ("ser_lightning.objectives.barlow_twins.BarlowTwins", "online"),
        ("not_installed.Objective", "online"),
    ],
)
def test_dino_is_measured_by_its_teacher_and_all_others_by_their_student(
    tmp_path, objective, branch
):
    stage = Looking(write_checkpoint(tmp_path / "last.ckpt", objective))
    assert stage.branch == stage.default_branch == branch
    assert stage.backbone.vit.pos_embed.unique().tolist() == [float(branch == "momentum")]
    assert stage.checkpoint_hash.endswith(f"-{branch}")


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    path = write_checkpoint(tmp_path / "last.ckpt", MOCO)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["backbone.vit.norm.weight"][0] = torch.nan
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"1 are not finite, such as vit\.norm\.weight.*no record"):
        Looking(path)


def test_branch_may_be_chosen(tmp_path):
    path = write_checkpoint(tmp_path / "last.ckpt", DINO)
    stage = Looking(path, branch="online")
    assert (stage.branch, stage.default_branch) == ("online", "momentum")
    assert stage.backbone.vit.pos_embed.unique().tolist() == [0.0]


def test_result_has_the_stages_reason_and_those_of_the_data(tmp_path):
    stage = Looking(write_checkpoint(tmp_path / "last.ckpt", MOCO))
    source = Shapes(num_train=24, num_evaluation=12, image_size=16)

    def reason(own, **options):
        data = LabelledDataModule(source, num_workers=0, **options)
        data.setup("test")
        return stage.result(data, {}, 12, feature={}, reasons=own).unofficial_reasons

    assert reason([]) == ()
    assert reason(["too short"]) == ("too short",)
    assert reason([], num_test=6) == ("measured on a part of the images",)
    assert reason(["too short"], num_test=6) == ("too short", "measured on a part of the images")
