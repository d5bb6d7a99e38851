"""How many processes a machine takes."""

import os

import lightning as L
from lightning.pytorch.accelerators import CPUAccelerator

_WORKERS = 64  # of a device, on any machine


def refuse_more_processes_than_cores(trainer: L.Trainer) -> None:
    """Refuses processes that would only wait for each other; two may share a core, for a test."""
    cores = _num_cores()
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > max(cores, 2):
        raise ValueError(
            f"trainer.devices {trainer.num_devices} would start as many processes on a CPU of "
            f"{cores} cores; use at most {cores}, best 1: a process uses all cores by itself"
        )


def refuse_too_many_workers(num_workers: int) -> None:
    """Refuses workers whose start alone would take hours, and each some hundred megabytes."""
    most = max(_WORKERS, 4 * _num_cores())
    if num_workers > most:
        raise ValueError(
            f"data.num_workers {num_workers} would start as many processes on {_num_cores()} "
            f"cores; use at most {most}, best one per core"
        )


def _num_cores() -> int:
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
