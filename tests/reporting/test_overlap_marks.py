"""Marks of what two views have in common: where they are, and that they are drawn."""

import itertools

import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from groups.test_frame import record_of
from reporting.test_figures import gallery
from ser_lightning.groups import Frame, transport
from ser_lightning.reporting import gallery as gallery_module
from ser_lightning.reporting.gallery import view_figure
from ser_lightning.reporting.overlap_marks import MAX_POINTS, Marks, draw_marks, overlap_marks

GRID = (8, 8)


def source_places(frame, points):
    return frame.centre[0] + (points - 0.5) @ frame.axes[0].T


def test_equal_numbers_are_equal_places_of_the_source_and_lie_in_both_views():
    first = Frame.of_crop(record_of([[3, 10, 44, 38]], [True], [30.0]), GRID)
    second = Frame.of_crop(record_of([[10, 4, 36, 40]], [False]), GRID)
    marks = overlap_marks(first, second, 0)
    assert len(marks[0].points) == MAX_POINTS
    places = [
        source_places(frame, mark.points)
        for frame, mark in zip((first, second), marks, strict=True)
    ]
    torch.testing.assert_close(*places, rtol=0, atol=1e-9)
    for mark in marks:
        assert ((mark.points > 0) & (mark.points < 1)).all()


@pytest.mark.parametrize("turn", [0.0, 30.0, 75.0])
def test_every_number_is_within_the_outline_in_both_views(turn):
    frames = [
        Frame.of_crop(record_of([[3, 10, 44, 38]], [True], [turn]), GRID),
        Frame.of_crop(record_of([[10, 4, 36, 40]], [False]), (6, 9)),
    ]
    marks = overlap_marks(*frames, 0)
    assert len(marks[0].numbers) > 3
    for mark, target, source in zip(marks, frames, frames[::-1], strict=True):
        valid = transport(torch.zeros(1, 1, *source.grid), source, target)[1][0]
        rows, columns = (mark.points * torch.tensor(target.grid)).floor().long().T
        assert valid[rows, columns].all()


def test_local_crop_has_numbers_of_its_own_that_the_first_crop_shares():
    boxes = [[0, 0, 48, 48], [10, 4, 36, 40], [8, 12, 18, 16]]
    grids = [GRID, GRID, (3, 3)]
    frames = tuple(
        Frame.of_crop(record_of([box], [False]), grid)
        for box, grid in zip(boxes, grids, strict=True)
    )
    views = gallery(1)._replace(crop_frames=frames)
    views = views._replace(crop=(*views.crop, views.crop[0][..., :12, :12]))
    first, second, local, *_ = views.marks(0)
    assert first.numbers == (1, 2, 3, 4, 5, 6, 7, 8)
    assert (second.numbers, local.numbers) == ((1, 2, 3, 4), (5, 6, 7, 8))
    places = [
        source_places(f, m.points) for f, m in zip(frames, (first, second, local), strict=True)
    ]
    torch.testing.assert_close(places[0], torch.cat(places[1:]), rtol=0, atol=1e-9)
    valid = transport(torch.zeros(1, 1, *GRID), frames[0], frames[2])[1][0]
    assert edges_of(local.outline, (3, 3)) == edges_by_loop(valid)


def edges_of(outline, grid):
    """Edges as pairs of (row, column) in tokens."""
    return {
        tuple(sorted(map(tuple, edge)))
        for edge in (outline * torch.tensor(grid)).round(decimals=6).tolist()
    }


def edges_by_loop(valid):
    height, width = valid.shape

    def has(row, column):
        return 0 <= row < height and 0 <= column < width and bool(valid[row, column])

    edges = set()
    for row, column in itertools.product(range(height), range(width)):
        if has(row, column):
            corners = {
                (row - 1, column): ((row, column), (row, column + 1)),
                (row + 1, column): ((row + 1, column), (row + 1, column + 1)),
                (row, column - 1): ((row, column), (row + 1, column)),
                (row, column + 1): ((row, column + 1), (row + 1, column + 1)),
            }
            edges |= {edge for place, edge in corners.items() if not has(*place)}
    return edges


def test_outline_is_around_the_tokens_whose_centres_the_other_view_has():
    first = Frame.of_crop(record_of([[0, 0, 40, 40]], [False]), GRID)
    second = Frame.of_crop(record_of([[20, 10, 20, 30]], [False]), GRID)
    marks, other = overlap_marks(first, second, 0)
    # Tokens of 5 pixels; centres in [21.25, 38.75] x [11.875, 38.125]: rows 4 to 7, columns 2 to 7.
    expected = torch.zeros(GRID, dtype=torch.bool)
    expected[4:8, 2:8] = True
    assert len(marks.outline) == 2 * (4 + 6)
    assert edges_of(marks.outline, GRID) == edges_by_loop(expected)
    # The other's of 2.5 x 3.75 pixels are in [2.5, 37.5]^2 but for the last row and column.
    expected = torch.zeros(GRID, dtype=torch.bool)
    expected[:7, :7] = True
    assert edges_of(other.outline, GRID) == edges_by_loop(expected)


def test_outlines_are_around_the_valid_tokens_of_either_view():
    first = Frame.of_crop(record_of([[3, 10, 44, 38]], [True], [30.0]), GRID)
    second = Frame.of_crop(record_of([[10, 4, 36, 40]], [False]), (6, 9))
    marks = overlap_marks(first, second, 0)
    for mark, (target, source) in zip(marks, ((first, second), (second, first)), strict=True):
        _, valid = transport(torch.zeros(1, 1, *source.grid), source, target)
        assert 0 < valid.sum() < valid.numel()
        assert edges_of(mark.outline, target.grid) == edges_by_loop(valid[0])


@pytest.mark.parametrize(("max_scale", "is_marked"), [(2.0, False), (3.5, True)])
def test_scale_is_the_given_one(max_scale, is_marked):
    first = Frame.of_crop(record_of([[0, 0, 48, 48]], [False]), GRID)
    second = Frame.of_crop(record_of([[10, 20, 16, 16]], [False]), GRID)
    for mark in overlap_marks(first, second, 0, max_scale):
        assert (len(mark.points) > 0) == (len(mark.outline) > 0) == is_marked


def test_views_without_a_common_part_have_no_marks():
    first = Frame.of_crop(record_of([[0, 0, 20, 30]], [False]), GRID)
    second = Frame.of_crop(record_of([[40, 60, 20, 30]], [False]), GRID)
    marks = overlap_marks(first, second, 0)
    assert all(len(mark.points) == 0 for mark in marks)
    assert all(len(mark.outline) == 0 for mark in marks)
    axes = axes_of()
    draw_marks(axes, marks[0], 32, 48)
    assert drawn_on(axes) == ([[], []], {})


def axes_of():
    return Figure().add_subplot()


def drawn_on(axes):
    """Outlines as (x, y) edges, and by number the place (x, y) and colour of each point."""
    lines = [a for a in axes.collections if isinstance(a, LineCollection)]
    outlines = [[edge.tolist() for edge in line.get_segments()] for line in lines]
    points = {
        int(text.get_text()): (text.get_position(), text.get_bbox_patch().get_facecolor())
        for text in axes.texts
    }
    return outlines, points


def test_marks_are_drawn_in_pixels_of_a_view_that_is_not_square():
    outline = torch.tensor([[[0.25, 0.0], [0.5, 0.0]], [[0.5, 0.125], [0.5, 0.25]]]).double()
    points = torch.tensor([[0.25, 0.125], [0.75, 0.5]]).double()
    axes = axes_of()
    draw_marks(axes, Marks(outline, points, (2, 5)), 32, 48)
    outlines, drawn = drawn_on(axes)
    expected = [[[-0.5, 7.5], [-0.5, 15.5]], [[5.5, 15.5], [11.5, 15.5]]]
    assert outlines == [expected, expected]  # a bright line below a dark one
    assert {number: place for number, (place, _) in drawn.items()} == {
        2: (5.5, 7.5), 5: (23.5, 23.5),
    }  # fmt: skip


def test_every_match_has_a_colour_of_its_own_that_is_the_same_in_both_views():
    first = Frame.of_crop(record_of([[3, 10, 44, 38]], [True], [30.0]), GRID)
    second = Frame.of_crop(record_of([[10, 4, 36, 40]], [False]), GRID)
    colours = []
    for marks in overlap_marks(first, second, 0):
        axes = axes_of()
        draw_marks(axes, marks, 32, 32)
        _, drawn = drawn_on(axes)
        assert list(drawn) == list(range(1, MAX_POINTS + 1))
        colours.append({number: colour for number, (_, colour) in drawn.items()})
        edges = [text.get_bbox_patch().get_edgecolor() for text in axes.texts]
        assert edges == [(0, 0, 0, 1)] * MAX_POINTS
    assert colours[0] == colours[1]
    assert len(set(colours[0].values())) == MAX_POINTS


def test_gallery_has_the_marks_of_crops_upon_both_of_them_and_nowhere_else(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(gallery_module, "save_picture", lambda figure, path: figures.append(figure))
    frames = tuple(
        Frame.of_crop(record_of(boxes, [False, True]), GRID)
        for boxes in ([[0, 0, 48, 48], [3, 10, 44, 38]], [[10, 20, 16, 16], [10, 4, 36, 40]])
    )
    views = gallery(2)._replace(crop_frames=frames, max_scale=3.5)
    view_figure(tmp_path / "views.png", views)
    (figure,) = figures
    axes = [a for part in figure.subfigs for a in part.axes]
    assert len(axes) == 2 * 5
    for row in range(2):
        image, first, second, *whole = axes[5 * row : 5 * row + 5]
        marks = overlap_marks(*frames, row, 3.5)
        places = []
        for one, mark, view in zip((first, second), marks, views.crop, strict=True):
            outlines, drawn = drawn_on(one)
            side = view.shape[-1]
            expected = (mark.outline.flip(-1) * side - 0.5).tolist()
            assert outlines == [expected] * 2
            assert len(expected) > 0
            assert len(drawn) == len(mark.points) > 0
            places.append({number: colour for number, (_, colour) in drawn.items()})
        assert places[0] == places[1]
        for one in (image, *whole):
            assert drawn_on(one) == ([], {})
