"""`ser-fit look`: one page that needs nothing else, also in a browser."""

import io
import shutil
import subprocess
from pathlib import Path

import matplotlib.figure
import pytest
import yaml
from matplotlib.backends.backend_svg import FigureCanvasSVG
from torch.utils.tensorboard import SummaryWriter

from ser_lightning.commands.look import look
from ser_lightning.reporting.look import (
    Curve,
    RunView,
    _flat,
    curve_figure,
    look_page,
    read_curves,
    read_view,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def runs(trained_run, tmp_path_factory):
    """Two copies of a tiny run with a picture each; the second one has another weight decay."""
    root = tmp_path_factory.mktemp("look")
    folders = [root / "first", root / "second"]
    for folder in folders:
        shutil.copytree(trained_run, folder)
        (folder / "pictures").mkdir(exist_ok=True)
        matplotlib.figure.Figure().savefig(folder / "pictures" / "token_maps.png")
    config = folders[1] / "fit.yaml"
    config.write_text(config.read_text().replace("weight_decay: 0.1", "weight_decay: 0.3"))
    return folders


@pytest.fixture(scope="module")
def page(runs):
    """The page of both runs."""
    look(list(map(str, runs)))
    return runs[0] / "look.html"


def test_view_has_curves_from_the_starting_weights_on(runs):
    view = read_view(runs[0], "first")
    knn = view.curves["val/knn_top1"]
    assert knn.steps == (0, 5, 11)
    assert view.status == "step 12, epoch 2 of 2"
    assert view.settings["model"] == "MoCoV3"
    assert view.settings["data.global_batch_size"] == "16"
    assert "gradient_norm" in view.curves
    assert view.curves["throughput/images_per_second"].values[-1] > 0


def test_start_from_an_earlier_step_takes_the_place_of_what_came_after_it(tmp_path):
    for start, (steps, value) in enumerate(
        [(range(10), 1), (range(10, 30), 2), (range(14, 18), 3)]
    ):
        with SummaryWriter(str(tmp_path / "now")) as writer:  # a file named after the second
            writer.add_scalar("hp_metric", -1, 0)  # as Lightning's own logger begins
            for step in steps:
                writer.add_scalar("loss", value, step)
                writer.add_scalar("epoch", step // 10, step)
        (file,) = (tmp_path / "now").iterdir()
        file.rename(tmp_path / f"events.out.tfevents.{start}")
    curve = read_curves(tmp_path)["loss"]
    assert curve.steps == tuple(range(18))
    assert curve.values == (1,) * 10 + (2,) * 4 + (3,) * 4


def test_settings_are_shown_as_they_were_written():
    given = {"data": {"root": "/home/Läufe", "name": 'say "hi"', "sizes": [1, "ä"], "none": None}}
    assert dict(_flat(given)) == {
        "data.root": "/home/Läufe", "data.name": 'say "hi"', "data.sizes": '[1, "ä"]',
        "data.none": "null",
    }  # fmt: skip


def test_page_of_two_runs_shows_what_differs_and_loads_nothing(page):
    text = page.read_text()
    shown, folded = text.split("<details>")
    assert "model.optimizer.weight_decay" in shown
    assert "0.3" in shown
    assert "model.temperature" in folded
    assert text.count("data:image/png;base64,") == 2
    assert "<svg" in text
    assert "k-NN top-1" in text
    known = ("http://www.w3.org", "http://purl.org", "http://creativecommons.org")
    outside = text.replace("https://matplotlib.org", "")
    for name in known:
        outside = outside.replace(name, "")
    assert not any(word in outside for word in ("http://", "https://", "<script", "src='"))


def test_wide_pictures_stand_below_each_other(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name, size in (("views", (15, 3)), ("token_maps", (8, 6))):
        matplotlib.figure.Figure(figsize=size).savefig(tmp_path / "pictures" / f"{name}.png")
    text = look_page([RunView(name, tmp_path, {}, {}, "") for name in ("one", "other")], [])
    for name, kind in (("views", "long"), ("token maps", "runs")):
        before, _, _ = text.partition(f"one: {name}")
        assert before.rpartition('<div class="')[2].startswith(f'{kind}"')


def test_curves_of_small_differences_are_labelled_with_whole_numbers():
    curve = Curve((1, 2), (0.764901, 0.764902))
    figure = curve_figure([RunView("one", Path(), {}, {"loss": curve}, "")], "loss")
    FigureCanvasSVG(figure).print_svg(io.StringIO())
    (axes,) = figure.axes
    assert not axes.yaxis.get_offset_text().get_text()


def test_one_run_is_a_page_too(runs):
    text = look_page([read_view(runs[1], "second")], [])
    assert "step 12, epoch 2 of 2" in text
    assert "data:image/png;base64," in text


@pytest.mark.slow
def test_page_of_a_run_in_its_first_epoch(runs, tmp_path):
    young = tmp_path / "young"
    young.mkdir()
    shutil.copy(runs[0] / "fit.yaml", young)
    look([str(young), "--output", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert "nothing logged yet" in text
    look([str(young), str(runs[0]), "--output", str(tmp_path / "page.html")])
    assert "k-NN top-1" in (tmp_path / "page.html").read_text()


def test_run_that_went_on_differently_shows_what_it_went_on_with(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())
    for step, epochs in ((12, 40), (4, 30)):
        config["trainer"]["max_epochs"] = epochs
        (tmp_path / "run" / f"fit.step{step}.yaml").write_text(yaml.safe_dump(config))
    view = read_view(tmp_path / "run", "run")
    assert view.settings["trainer.max_epochs"] == "40"
    assert view.status.endswith("of 40; settings changed at step 4, 12, the last ones are shown")


def test_no_run_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"no fit\.yaml; give the folder of a run"):
        look([str(tmp_path)])


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
@pytest.mark.slow
def test_page_is_as_wide_as_the_window_in_a_browser(runs, page):
    width_of = "document.documentElement.{}Width".format
    script = f"<script>document.title = {width_of('scroll')} - {width_of('client')}</script></body>"
    probe = runs[0] / "probe.html"
    probe.write_text(page.read_text().replace("</body>", script))
    for width in (500, 1400):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--window-size={width},900", f"--user-data-dir={runs[0] / 'profile'}"]
        found = subprocess.run(
            [*command, probe.as_uri()], capture_output=True, text=True, check=True
        )
        title = found.stdout.split("<title>")[1].split("</title>")[0]
        assert int(title) == 0  # nothing sticks out


SCRIPT = "--><script>alert(1)</script>"


def test_nothing_in_a_run_becomes_part_of_the_page_but_words(tmp_path):
    """Names of numbers, settings and files come with the folder, from whoever sent it."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "secret").write_text("a key of mine")
    (tmp_path / "pictures" / "views.png").symlink_to(tmp_path / "secret")
    (tmp_path / "pictures" / f"{SCRIPT.replace('/', '')}.png").write_bytes(b"")
    tags = [SCRIPT, "</svg><script>", "a$\\frac{b$", "val/<img src=x>"]
    curves = {tag: Curve((1, 2), (0.5, 0.25)) for tag in tags}
    settings = {SCRIPT: SCRIPT, "model": "$\\frac{$"}
    runs = [RunView(name, tmp_path, settings, curves, SCRIPT) for name in (SCRIPT, "$\\frac{$")]
    text = look_page(runs, [])
    assert "<script" not in text
    assert "<img" not in text
    assert "YSBrZXkgb2YgbWluZQ" not in text  # the secret, encoded as pictures are
    assert "&lt;script&gt;" in text
