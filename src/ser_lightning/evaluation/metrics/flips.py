"""How steady predictions are along videos of a slowly changing image.

Source: Hendrycks & Dietterich 2019, arXiv 1903.12261, flip probability and top-5 distance, and its
public evaluation code. mFR and mT5D, which divide by AlexNet's, are in `results/ratios.py`.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reference = Literal["first", "previous"]
"""What a frame is compared with: the first one for noises, whose frames are independent."""
_LIST = 5


def top5_distance(before: Tensor, after: Tensor) -> Tensor:
    """The top-5 distance (...) int64 of two rankings (..., 5), best class first.

        d = sum_{i=0..4} |i - min(position of before's i-th class in after's list, 5)|

    0 where the lists agree, 15 where they have no class in common; not symmetric.

    Raises:
        ValueError: if a list does not have five classes.
    """
    if before.shape[-1] != _LIST or after.shape[-1] != _LIST:
        raise ValueError(
            f"lists of {before.shape[-1]} and {after.shape[-1]} classes; the top-5 distance needs "
            "five of each, so at least five classes"
        )
    place = torch.arange(_LIST, device=before.device)
    found = before[..., :, None] == after[..., None, :]
    position = torch.where(found, place, _LIST).amin(-1)
    return (place - position).abs().sum(-1)


def video_sums(top5: Tensor, label: Tensor, reference: Reference, difficulty: int = 1) -> Tensor:
    """What each video adds to the fields of `PerturbationSums`: (V, 7) float64.

    Of (V, T, 5) best classes and (V,) labels. The flip rate is how often the best class changes, in
    [0, 1]; its mean over videos is the flip probability. The naive loop, with the frame
    r(j) = j - difficulty, or 0 for "first":

        for video: mean over j of 1[f(x_j) != f(x_r(j))]

    With fewer than five classes the top-5 distance is nan.

    Raises:
        ValueError: if the stride does not fit.
    """
    before, after = _pairs(top5, reference, difficulty)
    hits, num_frames = top5 == label[:, None, None], top5.shape[1]
    top1 = hits[..., 0].sum(1)
    columns = [
        torch.ones_like(label),
        torch.full_like(label, num_frames),
        top1,
        hits.any(2).sum(1),
        top1 == num_frames,
        (before[..., 0] != after[..., 0]).double().mean(1),
        top5_distance(before, after).double().mean(1)
        if top5.shape[-1] == _LIST
        else torch.full(label.shape, torch.nan),
    ]
    return torch.stack([column.double() for column in columns], dim=1)


class PerturbationSums(NamedTuple):
    """Sums and counts over the videos of one perturbation, in any order and number of parts."""

    num_videos: int
    num_frames: int
    top1_hits: int
    top5_hits: int
    all_right: int
    flip_rate: float
    top5_distance: float

    def percentages(self) -> dict[str, float]:
        """Accuracy over frames and videos and flip probability in percent, and mean distance.

        Raises:
            ValueError: if there is no video.
        """
        if self.num_videos == 0:
            raise ValueError("there are no videos to average; give at least one")
        return {
            "top1": 100 * self.top1_hits / self.num_frames,
            "top5": 100 * self.top5_hits / self.num_frames,
            "all_frames_right": 100 * self.all_right / self.num_videos,
            "flip_probability": 100 * self.flip_rate / self.num_videos,
            "top5_distance": self.top5_distance / self.num_videos,
        }


def _pairs(frames: Tensor, reference: Reference, difficulty: int) -> tuple[Tensor, Tensor]:
    """The frames (V, T, ...) compared with, and the frames compared, of every video."""
    num_frames = frames.shape[1]
    if not 1 <= difficulty < num_frames:
        raise ValueError(
            f"difficulty {difficulty} for videos of {num_frames} frames; it is a stride and must "
            "be between 1 and the number of frames less 1"
        )
    if reference == "previous":
        return frames[:, :-difficulty], frames[:, difficulty:]
    assert difficulty == 1, "a noise has videos of its own for each difficulty"
    return frames[:, :1].expand_as(frames[:, 1:]), frames[:, 1:]
