"""Group elements in plain words."""

from ser_lightning.groups import GroupElement


def describe_element(element: GroupElement, i: int = 0) -> str:
    """Describes one element of a batch, such as "flip, 90 deg, 9x7 grid".

    Args:
        element: a batch of elements.
        i: which of them.

    Returns:
        Flip, counter-clockwise turn and the grid of the result, height first.
    """
    parts = ["flip"] if bool(element.flip[i]) else []
    turn = 90 * int(element.quarter_turns[i])
    parts += [f"{turn} deg"] if turn else []
    height, width = element.shape
    return ", ".join([*(parts or ["upright"]), f"{height}x{width} grid"])
