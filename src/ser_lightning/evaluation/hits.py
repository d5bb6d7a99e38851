"""Which test images a stage classified right: what two runs are compared by, image by image."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ser_lightning.files import atomic_path


def write_hits(
    folder: Path,
    stage: str,
    dataset: str,
    hits: Mapping[str, Tensor],
    label: Tensor,
    variant: str = "",
) -> Path:
    """Writes results/<stage>-<dataset>[-<variant>].hits.safetensors, whole or not at all.

    Call it on one rank. The file names its test set by a hash of the labels in their order.

    Args:
        folder: of the run.
        stage: as in the record that the file lies beside.
        dataset: as there.
        hits: by the name of the record's metric, (N,) whether each test image was right, in the
            order of the test split.
        label: (N,) int64 classes of these images.
        variant: of the record's name.

    Returns:
        The file.
    """
    assert all(len(right) == len(label) for right in hits.values())
    tensors = {name: right.to("cpu", torch.uint8).contiguous() for name, right in hits.items()}
    notes = {"test_set": hashlib.sha256(label.cpu().numpy().tobytes()).hexdigest()}
    name = "-".join(part for part in (stage, dataset, variant) if part)
    path = folder / "results" / f"{name}.hits.safetensors"
    with atomic_path(path) as partial:
        partial.write_bytes(safetensors.torch.save(tensors, notes))
    return path
