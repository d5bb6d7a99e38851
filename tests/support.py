"""Small backbones, batches and objectives that tests of several rooms share."""

import inspect
import os
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from io import BytesIO
from multiprocessing import get_context
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.distributed as dist

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import PartitionedBatch, View, ViewRecord
from ser_lightning.groups import GroupSampler, act
from ser_lightning.objectives import Objective
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.regularizers import SERRegularizer
from ser_lightning.regularizers.base import CLSRegularizer
from ser_lightning.regularizers.overlap import OverlapRegularizer

WIDTH = 32
PATCH = 4
GRID = (4, 4)
TINY_VIT = {"embed_dim": WIDTH, "depth": 4, "num_heads": 2}


def tiny_backbone(**options):
    """A 4-block ViT for 16 px images: a 4x4 grid of 32-wide tokens."""
    defaults = {"image_size": 16, "patch_size": PATCH, "layer": 2, "vit_options": TINY_VIT}
    return SplitViT(**{"name": "vit_tiny_patch16_224", **defaults, **options})


def objective_classes(parent=Objective):
    """Every objective that can be built, by class."""
    found = [] if inspect.isabstract(parent) else [parent]
    for child in parent.__subclasses__():
        found += objective_classes(child)
    return [c for c in found if c.__module__.startswith("ser_lightning.")]


def tiny_objective(cls, ser=True, weight=1.0, seed=0, **options):
    """An objective on the tiny backbone with small heads, with or without SER."""
    torch.manual_seed(seed)
    backbone = tiny_backbone()
    regularizer = SERRegularizer(WIDTH, weight=weight, hidden=24)  # draws its weights either way
    heads = {"hidden": 48, "projection": 16}
    return cls(backbone, regularizer=regularizer if ser else None, **heads | options)


def tiny_with_add_on(cls, add_on, layer=2, seed=0, **options):
    """An objective whose add-on, a class, reads after block `layer` of the tiny backbone."""
    torch.manual_seed(seed)
    backbone = tiny_backbone(layer=layer, cls_layer=0)
    heads = {"hidden": 48, "projection": 16}
    return cls(backbone, regularizer=add_on(WIDTH), **heads | options)


def cls_add_ons():
    """Every add-on that reads [CLS]."""
    return CLSRegularizer.__subclasses__()


def add_ons():
    """Every add-on but SER and `PerLayer`, which have tests of their own."""
    return [*cls_add_ons(), OverlapRegularizer]


def tiny_moco(ser=True, **options):
    """MoCo-v3 on the tiny backbone, with or without SER."""
    return tiny_objective(MoCoV3, ser, **options)


def tiny_batch(num_crop=6, num_invertible=4, seed=0, dtype=torch.float32, num_local=0):
    """A partitioned batch of random images, whole over all ranks; local views are 8 px wide."""
    rng = torch.Generator().manual_seed(seed)
    numpy_rng = np.random.default_rng(seed)

    def images(num, size):
        return torch.randn(num, 3, size, size, generator=rng, dtype=dtype)

    def pair(size):
        upright, grid = images(num_invertible, size), (size // PATCH, size // PATCH)
        draws = numpy_rng.random((num_invertible, 2, 2))
        elements = GroupSampler().sample(num_invertible, grid, numpy_rng, draws)
        return [View(act(e, upright, PATCH), e) for e in elements]

    crop = [View(images(num_crop, 16)) for _ in range(2)]
    invertible = pair(16)
    for _ in range(num_local // 2):
        crop += [View(images(num_crop, 8)) for _ in range(2)]
        invertible += pair(8)
    total = num_crop + num_invertible
    return PartitionedBatch(
        tuple(crop) if num_crop else (),
        tuple(invertible) if num_invertible else (),
        torch.arange(total),
        torch.arange(total) % 3,
        torch.tensor(0),
    )


def with_needs(batch, needs, seed=0):
    """The batch with records of its crops and the extra views that an add-on asks for."""
    rng = torch.Generator().manual_seed(seed)
    num = len(batch.crop[0].pixels)
    dtype = batch.crop[0].pixels.dtype

    def uniform(*shape):
        return torch.rand(*shape, generator=rng)

    def record():
        flip, jitter, gray, solarize = (uniform(4, num) < 0.5).float()
        brightness, contrast, saturation = 0.6 + 0.8 * uniform(3, num)
        return ViewRecord(
            100 + 50 * uniform(num, 2),
            torch.cat([20 * uniform(num, 2), 40 + 30 * uniform(num, 2)], 1), flip, jitter,
            uniform(num, 4).argsort(1).float(), brightness, contrast, saturation,
            0.2 * uniform(num) - 0.1, gray, 2 * uniform(num), solarize, torch.zeros(num),
        )  # fmt: skip

    extra = ()
    if needs.plain:
        extra += (View(torch.randn(num, 3, 16, 16, generator=rng, dtype=dtype)),)
    if needs.rotated:
        small = torch.randn(num, 3, 8, 8, generator=rng, dtype=dtype)
        extra += tuple(View(small.rot90(k, (2, 3))) for k in range(4))
    return batch._replace(
        crop=tuple(view._replace(record=record()) for view in batch.crop), extra=extra
    )


def turned(batch, limit=40.0, seed=0):
    """The batch with angles, up to a limit, of the invertible views and of crops with a record."""
    rng = torch.Generator().manual_seed(seed)

    def angles(view):
        return limit * (2 * torch.rand(len(view.pixels), generator=rng) - 1)

    def view(v):
        if v.element is not None:
            v = v._replace(element=v.element._replace(angle=angles(v)))
        if v.record is not None:
            v = v._replace(record=v.record._replace(turn=angles(v)))
        return v

    return batch._replace(
        crop=tuple(map(view, batch.crop)), invertible=tuple(map(view, batch.invertible))
    )


def take_rank(batch, rank, world_size):
    """The slice of a whole batch that one rank holds."""

    def share(x):
        size = len(x) // world_size
        return x[rank * size : (rank + 1) * size]

    def view(v):
        parts = ("flip", "half_turn", "angle") if v.element else ()
        parts = {n: share(x) for n in parts if (x := getattr(v.element, n)) is not None}
        element = v.element and v.element._replace(**parts)
        record = v.record and ViewRecord(*map(share, v.record))
        return View(share(v.pixels), element, record)

    parts = (tuple(map(view, part)) for part in (batch.crop, batch.invertible, batch.extra))
    return batch._replace(**dict(zip(("crop", "invertible", "extra"), parts, strict=True)))


def run_processes(function, *args, world_size=2, backend="gloo"):
    """What `function(*args)` returns on every rank of a process group on this machine.

    The ranks are forked from one process that has imported the package, once per test process.
    """
    with TemporaryDirectory() as folder, ProcessPoolExecutor(world_size, _forkserver()) as pool:
        group = {"init_method": f"file://{folder}/init", "world_size": world_size}
        group["backend"] = backend
        ranks = [pool.submit(_run_rank, function, args, group, r) for r in range(world_size)]
        return [torch.load(BytesIO(rank.result())) for rank in ranks]


def _forkserver():
    context = get_context("forkserver")
    context.set_forkserver_preload(["ser_lightning.evaluation", "ser_lightning.objectives"])
    return context


def in_new_process(function, *args):
    """What `function(*args)` returns in a process of its own."""
    with ProcessPoolExecutor(1, _forkserver()) as pool:
        return pool.submit(function, *args).result()


def as_by_torchrun():
    """Sets what torchrun would, so that a trainer on this rank takes the process group it is in."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    names |= {"LOCAL_WORLD_SIZE": world_size, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in names.items()})


def _run_rank(function, args, group, rank):
    torch.set_num_threads(1)
    if group["backend"] == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(**group, rank=rank, timeout=timedelta(minutes=2))
    try:
        torch.save(function(*args), buffer := BytesIO())
    finally:
        dist.destroy_process_group()  # so that the other ranks fail with this one
    return buffer.getvalue()
