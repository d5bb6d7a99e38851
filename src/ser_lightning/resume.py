"""Where a checkpoint's run goes on, said so that Lightning goes on there.

Which batch comes next follows from its counters: `data/base.py`, `ImageDataModule._position`.
"""

from typing import Any


def restate_progress(checkpoint: dict[str, Any]) -> None:
    """Restates, in place, where in its epoch a checkpoint was written.

    Where a run is limited by steps, Lightning goes on from the end of an epoch as if from its
    middle: it trains on one batch more of it, and counts that as an epoch. Where steps have ended a
    run within an epoch, and epochs limit it now, the rest of that epoch is left out. Restated, the
    end of an epoch is the start of the next, and a part of one is a part.

    Args:
        checkpoint: as Lightning writes it, without effect on one of weights alone.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    epochs, batches = loops.get("epoch_progress"), loops.get("epoch_loop.batch_progress")
    if not (epochs and batches):
        return
    was_left = epochs["total"]["processed"] == epochs["total"]["started"] > 0
    if not was_left:
        return
    is_whole = batches["is_last_batch"]
    for tracker in (epochs["total"], epochs["current"]):
        tracker["processed"] -= not is_whole
        tracker["completed"] = tracker["processed"]
    if is_whole:
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False
