"""The one-page picture: drawn for full and for meagre runs, legible, written atomically."""

import itertools

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.text import Text

from ser_lightning.batch import ViewRecord
from ser_lightning.groups import GroupElement
from ser_lightning.reporting import figures as figures_module
from ser_lightning.reporting.figures import demo_figure
from ser_lightning.reporting.gallery import ViewGallery
from ser_lightning.reporting.summary import RunCurve
from ser_lightning.reporting.token_maps import TokenComparison, TokenMaps

GRID = (8, 8)


def gallery(num_images=4):
    flip = torch.ones(num_images, dtype=torch.bool)
    elements = (
        GroupElement.from_turns(flip, torch.full((num_images,), 3), (9, 7)),
        GroupElement.from_turns(flip, torch.full((num_images,), 2), (8, 10)),
    )
    sizes = [tuple(8 * side for side in element.shape) for element in elements]
    images = torch.rand(num_images, 3, 64, 64)
    ones = torch.ones(num_images)
    box = torch.tensor([[8.0, 8.0, 32.0, 48.0]]).expand(num_images, 4)
    drawn = ViewRecord(torch.full((num_images, 2), 64.0), box, *(ones,) * 11)
    whole = drawn._replace(
        box=64 * torch.tensor([[0.0, 0, 1, 1]]).expand(num_images, 4), turn=0 * ones
    )
    return ViewGallery(
        images,
        (images, torch.rand(num_images, 3, 32, 32)),
        tuple(torch.rand(num_images, 3, *size) for size in sizes),
        elements,
        (drawn, drawn, whole, whole),
    )


def comparisons(num=3):
    maps = TokenMaps(torch.randn(16, 7, 9), torch.randn(16, 7, 9), torch.rand(7, 9), centred=0.8)
    encoders = dict.fromkeys(("MoCo-v3", "+ SER", "before training (reference)"), maps)
    comparison = TokenComparison(
        "flip, 270 deg, 7x9 grid", torch.rand(3, 64, 64), torch.rand(3, 56, 72), encoders
    )
    return [comparison] * num


def curves(knn=40.0):
    names = [f"equivariance/mean_centred/{family}" for family in ("rotation", "flip", "scale")]
    labelled = {} if knn is None else {"knn_top1": knn}
    metrics = [dict.fromkeys(names, score) | labelled for score in (0.7, 0.8, 0.9)]
    return [RunCurve(name, [0, 10, 20], metrics) for name in ("MoCo-v3", "+ SER")]


WORDS = "SER makes the token map turn with the image. " * 5


def texts_of(figure):
    """The words of a figure and where they stand; without ticks, some of which are not drawn."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    ticks = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    found = [t for t in figure.findobj(Text) if t.get_text().strip() and t not in ticks]
    return [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in found]


@pytest.mark.parametrize(
    ("views", "maps", "numbers"),
    [
        (gallery(), comparisons(), curves()),
        pytest.param(gallery(7), comparisons(5), curves(None), marks=pytest.mark.slow),
        (gallery(1), comparisons(1), []),
        (gallery(3), [], []),
    ],
)
def test_no_words_overlap_or_leave_the_page(tmp_path, monkeypatch, views, maps, numbers):
    drawn = []
    monkeypatch.setattr(figures_module, "save_picture", lambda figure, path: drawn.append(figure))
    demo_figure(tmp_path / "demo.png", views, maps, numbers, 2, "Title", WORDS, 10)
    (figure,) = drawn
    words = texts_of(figure)
    for (first, a), (second, b) in itertools.combinations(words, 2):
        assert not a.overlaps(b), f"{first!r} overlaps {second!r}"
    for text, box in words:
        assert min(box.x0, box.y0) >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text


def test_figure_is_a_png_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "demo.png"
    demo_figure(path, gallery(2), comparisons(1), curves(), 2)
    pixels = imread(path)
    assert pixels.shape[1] == 1500
    assert pixels.std() > 0.05
    assert [file.name for file in path.parent.iterdir()] == ["demo.png"]


def test_failed_write_keeps_the_old_figure(tmp_path, monkeypatch):
    path = tmp_path / "demo.png"
    path.write_bytes(b"old")

    def fails(self, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", fails)
    with pytest.raises(OSError, match="disk full"):
        demo_figure(path, gallery(1), [], [], 2)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["demo.png"]


def test_every_run_starts_at_the_random_init(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures_module, "save_picture", lambda figure, path: drawn.append(figure))
    demo_figure(tmp_path / "demo.png", gallery(1), [], curves(), 2, num_classes=10)
    panels = drawn[0].findobj(Axes)
    (axes,) = [panel for panel in panels if "k-NN" in panel.get_title(loc="left")]
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["MoCo-v3"].get_xydata().tolist() == [[0, 40], [10, 40], [20, 40]]
    assert lines["+ SER"].get_marker() != lines["MoCo-v3"].get_marker()
    assert any(list(line.get_ydata()) == [10, 10] for line in axes.lines)  # chance
