"""Training of one objective on a folder of images, by this project or by lightly's parts.

Both train the same plain ViT with [CLS] at the start and all weights trainable, heads as wide as
those in lightly's examples, colours and crops of the same published recipe, and AdamW. This
project's side is its data module and objective in a Lightning run, as `ser-fit fit` has them but
for what it measures and saves; the other is a plain loop over lightly's data set, transforms,
heads and losses. Source: lightly, the examples of its documentation ("Models") in plain PyTorch.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

MOMENTUM = 0.99
RATES: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
HEADS: dict[str, dict[str, Any]] = {
    "SimCLR": {"hidden": 512, "projection": 128},
    "BYOL": {"hidden": 1024, "projection": 256},
    "DINO": {"hidden": 512, "bottleneck": 64, "projection": 2048},
    "BarlowTwins": {"hidden": 2048, "projection": 2048},
}


class Setting(NamedTuple):
    """What is trained; the ViT has patches of `patch_size` on images of `image_size` pixels."""

    root: str
    objective: str
    batch_size: int = 256
    width: int = 192
    depth: int = 6
    heads: int = 3
    image_size: int = 32
    patch_size: int = 4
    num_workers: int = 0
    precision: str = "fp32"

    @property
    def vit(self) -> dict[str, Any]:
        """What timm is told beside the sizes of images and patches."""
        return {"embed_dim": self.width, "depth": self.depth, "num_heads": self.heads}


def ours(setting: Setting, num_steps: int, after_step: Callable[[], None]) -> None:
    """Trains with this project; `after_step` is called at the end of every step."""
    import lightning as L  # noqa: PLC0415 - its import is part of the first step

    from ser_lightning.data import ImageFolder, PartitionedDataModule  # noqa: PLC0415

    class AfterStep(L.Callback):
        """Calls `after_step`."""

        def on_train_batch_end(self, *_: object) -> None:
            after_step()

    data = PartitionedDataModule(
        ImageFolder(setting.root),
        setting.batch_size,
        _crop_views(setting.objective),
        image_size=setting.image_size,
        patch_size=setting.patch_size,
        num_workers=setting.num_workers,
    )
    module = objective(setting)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a run without validation, and of few workers
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            precision="bf16-mixed" if setting.precision == "bf16" else "32-true",
            max_steps=num_steps,
            limit_val_batches=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[AfterStep()],
        )
        trainer.fit(module, data)


def objective(setting: Setting) -> Any:
    """This project's objective without an add-on, all weights trainable."""
    from ser_lightning.backbones import SplitViT  # noqa: PLC0415
    from ser_lightning.objectives.barlow_twins import BarlowTwins  # noqa: PLC0415
    from ser_lightning.objectives.byol import BYOL  # noqa: PLC0415
    from ser_lightning.objectives.dino import DINO  # noqa: PLC0415
    from ser_lightning.objectives.simclr import SimCLR  # noqa: PLC0415

    classes: dict[str, Any] = {cls.__name__: cls for cls in (SimCLR, BYOL, DINO, BarlowTwins)}
    return classes[setting.objective](
        SplitViT(
            "vit_tiny_patch16_224",
            setting.image_size,
            layer=setting.depth,
            cls_layer=0,
            patch_size=setting.patch_size,
            vit_options=setting.vit,
            freeze_patch_embed=False,
        ),
        **HEADS[setting.objective],
        optimizer=lambda parameters, lr: torch.optim.AdamW(parameters, **RATES, fused=True),
        warmup_epochs=0,
        global_batch_size=setting.batch_size,
    )


def _crop_views(objective: str) -> Any:
    """The two views of an objective, with the colours that lightly's transform of it has."""
    from ser_lightning.data import CropViews  # noqa: PLC0415
    from ser_lightning.data.photometric import PhotometricRecipe  # noqa: PLC0415

    if objective == "SimCLR":
        recipe = PhotometricRecipe(0.8, 0.8, 0.8, 0.2, p_blur=0.5, p_solarize=0.0)
        return CropViews(recipe, recipe)
    return CropViews(scale=(0.4, 1.0)) if objective == "DINO" else CropViews()


def lightlys(setting: Setting, num_steps: int, after_step: Callable[[], None]) -> None:
    """Trains with lightly's parts in a plain loop."""
    import timm  # noqa: PLC0415 - its import is part of the first step
    from lightly.data import LightlyDataset  # noqa: PLC0415

    dataset = LightlyDataset(setting.root + "/train", transform=_transform(setting))
    loader = torch.utils.data.DataLoader(
        dataset, setting.batch_size, shuffle=True, drop_last=True, num_workers=setting.num_workers
    )
    sizes: dict[str, Any] = {"img_size": setting.image_size, "patch_size": setting.patch_size}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes, **setting.vit)
    model = METHODS[setting.objective](vit, setting.width)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], **RATES, fused=True
    )
    batches = _forever(loader)
    is_bf16 = setting.precision == "bf16"
    for _ in range(num_steps):
        (first, second), *_ = next(batches)
        with torch.autocast("cpu", torch.bfloat16) if is_bf16 else nullcontext():
            loss = model(first, second)
        loss.backward()
        model.before_step()
        optimizer.step()
        optimizer.zero_grad()
        after_step()


def _forever(loader: torch.utils.data.DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def _transform(setting: Setting) -> Callable[[Any], list[Tensor]]:
    from lightly import transforms  # noqa: PLC0415

    size = setting.image_size
    if setting.objective == "SimCLR":
        return transforms.SimCLRTransform(input_size=size)
    if setting.objective == "DINO":
        return transforms.DINOTransform(global_crop_size=size, n_local_views=0)
    first = transforms.BYOLView1Transform(input_size=size)
    return transforms.BYOLTransform(first, transforms.BYOLView2Transform(input_size=size))


class Method(nn.Module):
    """A backbone and its head; `forward` is the loss of two views."""

    def before_step(self) -> None:
        """What a method does to gradients."""


class SimCLR(Method):
    """NT-Xent on one projection per view."""

    def __init__(self, vit: nn.Module, width: int) -> None:
        super().__init__()
        from lightly.loss import NTXentLoss  # noqa: PLC0415
        from lightly.models.modules import SimCLRProjectionHead  # noqa: PLC0415

        self.vit, self.head = vit, SimCLRProjectionHead(width, *HEADS["SimCLR"].values())
        self.loss = NTXentLoss(temperature=0.1)

    @override
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.loss(self.head(self.vit(first)), self.head(self.vit(second)))


class BarlowTwins(Method):
    """The cross-correlation of projections becomes the identity."""

    def __init__(self, vit: nn.Module, width: int) -> None:
        super().__init__()
        from lightly.loss import BarlowTwinsLoss  # noqa: PLC0415
        from lightly.models.modules import BarlowTwinsProjectionHead  # noqa: PLC0415

        self.vit, self.head = vit, BarlowTwinsProjectionHead(width, *HEADS["BarlowTwins"].values())
        self.loss = BarlowTwinsLoss()

    @override
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.loss(self.head(self.vit(first)), self.head(self.vit(second)))


class BYOL(Method):
    """Predictions of one view against momentum projections of the other."""

    def __init__(self, vit: nn.Module, width: int) -> None:
        super().__init__()
        from lightly.loss import NegativeCosineSimilarity  # noqa: PLC0415
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead  # noqa: PLC0415

        hidden, projection = HEADS["BYOL"].values()
        self.vit, self.head = vit, BYOLProjectionHead(width, hidden, projection)
        self.predictor = BYOLPredictionHead(projection, hidden, projection)
        self.momentum_vit, self.momentum_head = _frozen(self.vit), _frozen(self.head)
        self.loss = NegativeCosineSimilarity()

    @override
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        _follow(self)
        p1, p2 = (self.predictor(self.head(self.vit(x))) for x in (first, second))
        with torch.no_grad():
            z1, z2 = (self.momentum_head(self.momentum_vit(x)) for x in (first, second))
        return (self.loss(p1, z2) + self.loss(p2, z1)) / 2


class DINO(Method):
    """A student matches the outputs of a teacher that follows it."""

    def __init__(self, vit: nn.Module, width: int) -> None:
        super().__init__()
        from lightly.loss import DINOLoss  # noqa: PLC0415
        from lightly.models.modules import DINOProjectionHead  # noqa: PLC0415

        widths, free = HEADS["DINO"].values(), {"norm_last_layer": False}
        self.vit, self.momentum_vit = vit, _frozen(vit)
        self.head = DINOProjectionHead(width, *widths, freeze_last_layer=1, **free)
        self.momentum_head = DINOProjectionHead(width, *widths, **free).requires_grad_(False)
        self.loss = DINOLoss(output_dim=HEADS["DINO"]["projection"], warmup_teacher_temp_epochs=5)

    @override
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        _follow(self)
        with torch.no_grad():
            teacher = [self.momentum_head(self.momentum_vit(x)) for x in (first, second)]
        student = [self.head(self.vit(x)) for x in (first, second)]
        return self.loss(teacher, student, epoch=0)

    @override
    def before_step(self) -> None:
        self.head.cancel_last_layer_gradients(current_epoch=0)


def _frozen(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)


def _follow(method: Any) -> None:
    from lightly.models.utils import update_momentum  # noqa: PLC0415

    update_momentum(method.vit, method.momentum_vit, m=MOMENTUM)
    update_momentum(method.head, method.momentum_head, m=MOMENTUM)


METHODS: dict[str, Callable[[nn.Module, int], Method]] = {
    method.__name__: method for method in (SimCLR, BYOL, DINO, BarlowTwins)
}
SIDES = {"ours": ours, "lightly": lightlys}
