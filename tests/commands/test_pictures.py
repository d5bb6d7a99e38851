"""What `fit` draws while it trains."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ser_lightning.batch import ViewNeeds
from ser_lightning.cli import main
from ser_lightning.commands import pictures as pictures_module
from ser_lightning.commands.pictures import Pictures, comparisons, gallery, neighbour_rows
from ser_lightning.data import ImageFolder, PartitionedDataModule, Shapes
from ser_lightning.data.extra_views import LocalCrops
from ser_lightning.data.pipelines import CropViews, InvertibleViews
from ser_lightning.evaluation.neighbours import Neighbours
from ser_lightning.reporting.figures import token_map_figure
from support import tiny_backbone

TINY = str(Path(__file__).parents[1] / "tiny.yaml")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


class Standard:
    """Pixels that are as they are."""

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def test_run_has_pictures_of_its_start_and_of_every_validation(tmp_path):
    main(["fit", "--config", TINY, "--run_dir", str(tmp_path), "--pictures.every", "1"])
    for name in ("views", "token_maps", "neighbours"):
        with Image.open(tmp_path / "pictures" / f"{name}.png") as picture:
            assert picture.width >= 800
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    steps = {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]}
    drawn = [0, 6, 12]
    assert steps == {
        "pictures/views": [0], "pictures/token_maps": drawn, "pictures/neighbours": drawn,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("max_scale", [1.5, 8.0])
def test_marks_of_a_run_are_of_its_regularizers_scale(tmp_path, monkeypatch, max_scale):
    drawn = []
    view_figure = pictures_module.view_figure

    def draws(path, views):
        drawn.append(views)
        view_figure(path, views)

    monkeypatch.setattr(pictures_module, "view_figure", draws)
    config = tmp_path / "overlap.yaml"
    config.write_text(
        "model: {init_args: {warmup_epochs: 0, regularizer: {class_path: OverlapRegularizer, "
        f"init_args: {{width: 32, hidden: 16, max_scale: {max_scale}, ratio: 0.5}}}}}}}}\n"
        "data: {invertible: null}\npictures: {every: 1}\ntrainer: {max_epochs: 1}\n"
    )
    run = tmp_path / "run"
    main(["fit", "--config", TINY, "--config", str(config), "--run_dir", str(run)])
    (views,) = drawn
    assert views.max_scale == max_scale
    assert views.crop_frames is not None
    assert views.invertible_frames is None


@pytest.mark.parametrize(("places", "num"), [(True, 3), (False, 2)])
def test_one_local_crop_is_drawn_where_it_is_compared(places, num):
    data = PartitionedDataModule(
        Shapes(num_train=8, num_evaluation=8, image_size=16), image_size=16, patch_size=4,
        global_batch_size=4, crop=CropViews(local=LocalCrops(4, 8)), invertible=None,
    )  # fmt: skip
    data.needs = ViewNeeds(places=places)
    data.setup("fit")
    views = gallery(data, None)
    assert [view.shape[-1] for view in views.crop] == [16, 16, 8][:num]
    if places:
        assert [frame.grid for frame in views.crop_frames] == [(4, 4), (4, 4), (2, 2)]
    else:
        assert views.crop_frames is None


@pytest.mark.filterwarnings("ignore:.*it is skipped.*")
def test_photographs_that_cannot_be_read_are_not_drawn(tmp_path):
    for i in range(20):
        picture = Image.new("RGB", (16, 16), (10 * i, 0, 0))
        for split in ("train", "val"):
            (tmp_path / split).mkdir(exist_ok=True)
            picture.save(tmp_path / split / f"{i:02}.png")
    for bad in (0, 1, 3):
        (tmp_path / "train" / f"{bad:02}.png").write_bytes(b"no image")
    data = PartitionedDataModule(
        ImageFolder(str(tmp_path)), image_size=16, patch_size=4, global_batch_size=4,
        on_bad_image="skip", max_bad_share=1.0, invertible=InvertibleViews(ratio=0.5),
    )  # fmt: skip
    data.setup("fit")
    views = gallery(data, None)
    assert len(views.originals) == len(views.crop[0]) == len(views.invertible[0]) == 2
    reds = views.originals[:, 0].mean((1, 2)).tolist()
    assert reds == pytest.approx([20 / 255, 40 / 255], abs=1e-4)  # the third and the fifth


def test_neighbours_are_the_images_whose_slots_were_found():
    source = Shapes(num_train=48, num_evaluation=24, image_size=16)
    data = PartitionedDataModule(
        source, image_size=16, patch_size=4, global_batch_size=8, bank_size=10, invertible=None,
        num_workers=0, evaluation_crop_fraction=1.0,
    )  # fmt: skip
    data.setup("fit")
    bank, queries = (loader.dataset.make for loader in data.val_dataloader())
    found = Neighbours(torch.tensor([3, 0]), torch.tensor([[9, 2, 5], [1, 0, 9]]), torch.rand(2, 3))
    rows = neighbour_rows(found, bank, queries, data)
    names = data.train_images.class_names
    for row, query, near in zip(rows, found.queries, found.bank, strict=True):
        image = source.evaluation().read(int(query)).float() / 255
        torch.testing.assert_close(row.query, image, atol=1e-5, rtol=0)
        images = [data.train_images.read(int(bank.positions[slot])) for slot in near]
        expected = torch.stack(images).float() / 255
        torch.testing.assert_close(row.neighbours, expected, atol=1e-5, rtol=0)
        label = int(source.evaluation().labels[query])
        assert row.name == names[label]
        labels = [int(data.train_images.labels[bank.positions[slot]]) for slot in near]
        assert list(row.is_same) == [other == label for other in labels]


def test_tiny_run_without_pictures_has_no_folder_for_them(trained_run):
    assert not (trained_run / "pictures").exists()


def test_drawing_consumes_no_random_numbers_and_leaves_the_mode(tmp_path):
    backbone = tiny_backbone().eval()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = comparisons(Standard, {"this run": backbone}, pixels)
    token_map_figure(tmp_path / "a.png", found, backbone.layer)
    assert torch.equal(torch.get_rng_state(), state)
    assert [c.caption for c in found] == ["turned by 90 deg", "flipped", "resized"]
    turned = found[0].maps["this run"]
    mean = backbone.token_maps(pixels, [backbone.layer])[0].mean((0, 2, 3))[:, None, None]
    (original,) = backbone.token_maps(pixels[:1], [backbone.layer])
    (moved,) = backbone.token_maps(pixels[:1].rot90(1, (-2, -1)), [backbone.layer])
    expected = original[0].rot90(1, (-2, -1))
    agreement = torch.cosine_similarity(moved[0] - mean, expected - mean, dim=0)
    torch.testing.assert_close(turned.agreement, agreement.detach(), atol=1e-5, rtol=1e-4)


def test_negative_interval_is_refused():
    with pytest.raises(ValueError, match="every -1 must be int >= 0"):
        Pictures(every=-1)
