import torch

from groups.test_frame import record_of
from ser_lightning.groups import Frame
from ser_lightning.reporting.overlap_marks import MAX_POINTS, overlap_marks

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


def test_outline_is_the_other_view():
    first = Frame.of_crop(record_of([[0, 0, 40, 40]], [False]), GRID)
    second = Frame.of_crop(record_of([[20, 10, 20, 20]], [False]), GRID)
    marks, _ = overlap_marks(first, second, 0)
    expected = torch.tensor([[0.5, 0.25], [0.5, 0.75], [1.0, 0.75], [1.0, 0.25]]).double()
    torch.testing.assert_close(marks.outline, expected)


def test_views_without_a_common_part_have_no_points():
    first = Frame.of_crop(record_of([[0, 0, 20, 30]], [False]), GRID)
    second = Frame.of_crop(record_of([[40, 60, 20, 30]], [False]), GRID)
    assert all(len(mark.points) == 0 for mark in overlap_marks(first, second, 0))
