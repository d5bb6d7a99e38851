"""How many processes a machine takes, and whether those of a run will meet."""

import os

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
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


def refuse_processes_that_do_not_meet(trainer: L.Trainer) -> None:
    """Refuses to wait for machines that cannot come, and runs beside each other in one folder."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    unset = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if trainer.num_nodes > 1 and unset and isinstance(environment, LightningEnvironment):
        raise ValueError(
            f"trainer.num_nodes {trainer.num_nodes} would wait for other machines, but "
            f"{' and '.join(unset)} are not set, by which they would meet; start the command by "
            "torchrun or SLURM on each of them, or leave trainer.num_nodes out"
        )
    started = int(os.environ.get("WORLD_SIZE", trainer.world_size))
    if TorchElasticEnvironment.detect() and started != trainer.world_size:
        raise ValueError(
            f"trainer.devices {trainer.num_devices} makes a run of {trainer.world_size}, but "
            f"torchrun has started {started} processes; give --trainer.devices "
            f"{os.environ.get('LOCAL_WORLD_SIZE', started)}, or start the command by itself"
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
