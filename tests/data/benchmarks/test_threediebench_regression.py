"""Pairs of views: two different ones of an object, latents that belong to them, fitting folders."""

from pathlib import Path

import numpy as np
import pytest

from object_tree import NUM_VIEWS, SYNSETS, write_bench, write_latents, write_out_of_range
from ser_lightning.data import Shapes
from ser_lightning.data.benchmarks.threediebench_regression import (
    ViewPairsDataModule,
    drawn_pairs,
)
from ser_lightning.sources.threediebench import ThreeDIEBench

pytestmark = pytest.mark.filterwarnings("ignore:.*the released set has.*")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return write_bench(tmp_path_factory.mktemp("bench"), num_train=3, num_val=2)


def module(bench, **options):
    data = ViewPairsDataModule(
        ThreeDIEBench(str(bench)), num_workers=0, image_size=8, global_batch_size=3, **options
    )
    data.needs_labels = False
    data.setup("fit")
    return data


def test_every_pair_of_views_is_equally_likely():
    objects = np.arange(30_000)
    pairs = drawn_pairs(0, 0, objects, np.full(len(objects), 5))
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(pairs.T), 1)
    assert (counts.diagonal() == 0).all()
    others = counts[~np.eye(5, dtype=bool)]
    assert ((others - 1500) ** 2 / 1500).sum() < 44  # chi-squared, 19 degrees, p = 0.001


def test_pair_is_a_function_of_seed_epoch_and_object():
    views = np.full(9, NUM_VIEWS)
    pairs = drawn_pairs(3, 1, np.arange(9), views)
    alone = [drawn_pairs(3, 1, np.array([i]), views[:1])[0].tolist() for i in range(9)]
    assert pairs.tolist() == alone
    assert pairs.tolist() != drawn_pairs(3, 2, np.arange(9), views).tolist()


def test_training_has_all_views_and_the_test_one_pair_of_each_object(bench):
    data = module(bench, holdout_fraction=0.3)
    train, test = data.images("train"), data.images("test")
    assert (len(train), len(data.images("holdout")), len(test)) == (9 * NUM_VIEWS, 0, 2 * 6)
    for number in range(6):
        one, two = (test.path(2 * number + i) for i in range(2))
        assert one != two
        assert one.rpartition("/")[0] == two.rpartition("/")[0]
    again = module(bench, seed=5).images("test")
    assert [again.path(i) for i in range(12)] == [test.path(i) for i in range(12)]


def test_latents_are_those_beside_the_images(bench):
    data = module(bench)
    train, test = data.images("train"), data.images("test")
    latents, pairs = train.latents(), test.latents()
    assert latents.shape == (9, NUM_VIEWS, 7)
    assert pairs.shape == (6, 2, 7)
    for index in (0, 77, 449):
        file = train.path(index).replace("image_", "latent_").replace(".jpg", ".npy")
        assert np.array_equal(latents[index // NUM_VIEWS, index % NUM_VIEWS], np.load(file))
    file = test.path(7).replace("image_", "latent_").replace(".jpg", ".npy")
    assert np.array_equal(pairs[3, 1], np.load(file))


def test_fewer_objects_are_whole_ones(bench):
    data = module(bench, num_train=6, num_test=3)
    assert (len(data.images("train")), len(data.images("test"))) == (6 * NUM_VIEWS, 6)


def test_translated_set_is_another_data_set(bench, tmp_path):
    write_bench(tmp_path, num_train=1, num_val=1, num_latents=10)
    assert ThreeDIEBench(str(tmp_path)).dataset_name == "3diebench_t"
    assert ThreeDIEBench(str(bench)).dataset_name == "3diebench"
    assert module(tmp_path).images("train").latents().shape == (3, NUM_VIEWS, 10)


def test_missing_and_strange_latents_are_named(tmp_path):
    write_bench(tmp_path, num_train=1, num_val=1)
    folder = tmp_path / SYNSETS[1] / "train0"
    train = module(tmp_path).images("train")
    for strange in (np.zeros(5), np.full(7, np.nan), np.array(["a"] * 7), np.zeros(7, complex)):
        np.save(folder / "latent_7.npy", strange)
        kind = rf"{strange.dtype} of shape \({len(strange)},\)"
        with pytest.raises(ValueError, match=rf"latent_7.npy holds {kind}; latents are 7 finite"):
            train.latents()
    write_latents(folder, 7, np.random.default_rng(0), num=10)
    with pytest.raises(ValueError, match="have 7 and 10 latents; give a folder of one release"):
        train.latents()
    (folder / "latent_7.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"latent_7.npy does not exist; the release has"):
        train.latents()


def test_out_of_range_views_are_those_of_test_objects_that_are_there(bench, tmp_path):
    objects = [f"{SYNSETS[0]}/val1", f"{SYNSETS[2]}/val0", f"{SYNSETS[0]}/train0"]
    write_out_of_range(tmp_path / "ood", objects, num_views=3)
    beyond = module(bench, out_of_range=str(tmp_path / "ood")).beyond
    assert len(beyond) == 4
    folders = [beyond.path(i).removeprefix(f"{tmp_path}/ood/").rpartition("/")[0] for i in range(4)]
    assert sorted(folders) == sorted([objects[0], objects[0], objects[1], objects[1]])
    assert (np.abs(beyond.latents()[..., :3]) > np.pi / 2).all()
    with pytest.raises(
        FileNotFoundError, match=r"no two views of a test object, such as .*image_0"
    ):
        module(bench, out_of_range=str(tmp_path))


def test_source_without_objects_is_refused():
    with pytest.raises(ValueError, match="Shapes has no views of objects"):
        ViewPairsDataModule(Shapes(num_train=8, num_evaluation=8))


def test_pairs_of_two_releases_are_refused(tmp_path):
    write_bench(tmp_path, num_train=1, num_val=1)
    pairs = module(tmp_path).images("test")
    folder, _, file = pairs.path(0).rpartition("/")
    view = int(file.removeprefix("image_").removesuffix(".jpg"))
    write_latents(Path(folder), view, np.random.default_rng(0), num=10)
    with pytest.raises(ValueError, match="have 7 and 10 latents; give a folder of one release"):
        pairs.latents()
