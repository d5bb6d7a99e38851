"""Decoding the videos of ImageNet-P."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.sources.base import UnreadableImage
from ser_lightning.sources.folder import FolderImages


def load_av() -> Any:
    """The package PyAV, which decodes videos and is not always installed.

    Raises:
        ValueError: it is missing.
    """
    try:
        return import_module("av")
    except ImportError as error:
        raise ValueError(
            "the videos of ImageNet-P need PyAV, which is not installed; "
            "pip install 'ser-lightning[imagenet-p]'"
        ) from error


def read_video(path: str) -> Tensor:
    """Decodes a whole video: (T, 3, H, W) uint8 frames.

    Raises:
        UnreadableImage: the file is missing or damaged.
    """
    av = load_av()
    try:
        with av.open(path) as container:
            container.streams.video[0].codec_context.thread_count = 1  # workers are many already
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    except Exception as error:  # damaged files make decoders raise almost anything
        raise UnreadableImage(f"{path}: {str(error) or type(error).__name__}") from error


class Videos(FolderImages):
    """The videos of one perturbation; what `read` gives has frames in front, (T, 3, H, W).

    A video must have so many frames; every so-manieth is taken, from the first one on.
    """

    def __init__(
        self,
        folder: Path,
        paths: np.ndarray,
        class_names: tuple[str, ...],
        num_frames: int,
        stride: int,
    ) -> None:
        super().__init__(folder, paths, class_names)
        self.num_frames = num_frames
        self.stride = stride

    @override
    def read(self, index: int) -> Tensor:
        frames = read_video(self.path(index))
        if len(frames) != self.num_frames:
            raise UnreadableImage(
                f"{self.path(index)}: {len(frames)} frames instead of {self.num_frames}"
            )
        return frames[:: self.stride]

    @override
    def _names(self) -> Iterable[bytes]:
        return self.paths.tobytes(), bytes([self.stride])
