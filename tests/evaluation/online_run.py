"""A tiny training run with online evaluation, in one or two processes."""

import lightning as L
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import EvaluationBatch
from ser_lightning.evaluation import OnlineEvaluation

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}


class Images(Dataset):
    """Random images of 3 classes; the class sets the mean colour."""

    def __init__(self, num_images, seed, labelled=True):
        rng = torch.Generator().manual_seed(seed)
        self.label = torch.arange(num_images) % 3 if labelled else torch.full((num_images,), -1)
        self.pixels = torch.randn(num_images, 3, 32, 32, generator=rng)
        self.pixels += 0.3 * torch.eye(3)[torch.arange(num_images) % 3][:, :, None, None]

    def __len__(self):
        return len(self.label)

    def __getitem__(self, i):
        return EvaluationBatch(self.pixels[i], self.label[i], torch.tensor(i))


class Shard(DistributedSampler):
    """Every image once: rank, rank + world size, ..."""

    def __iter__(self):
        return iter(range(self.rank, len(self.dataset), self.num_replicas))

    def __len__(self):
        return len(range(self.rank, len(self.dataset), self.num_replicas))


class Module(L.LightningModule):
    """Trains the embedding to be large."""

    def __init__(self, layer=1):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = SplitViT(
            "vit_tiny_patch16_224", image_size=32, layer=layer, patch_size=8, vit_options=TINY
        )

    def training_step(self, batch, batch_idx):
        return -self.backbone(batch.pixels).square().mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def loaders(world_size=1, rank=0, labelled=True, num_queries=23, batch_size=7):
    """The train loader, and the bank and queries of this rank."""
    train = DataLoader(Images(8, 2), batch_size=4)
    evaluation = [
        DataLoader(data, batch_size=batch_size, sampler=Shard(data, world_size, rank))
        for data in (Images(31, 0, labelled), Images(num_queries, 1, labelled))
    ]
    return train, evaluation


def trainer(callback, root, **options):
    """A silent CPU trainer."""
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "callbacks": [callback],
        "default_root_dir": root,
        "num_sanity_val_steps": -1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(**{**defaults, **options})


def validate_as_a_rank(root):
    """The metrics of random weights, in one of several processes or alone."""
    callback = OnlineEvaluation(k=5, num_equivariance_images=10)
    world = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    _, evaluation = loaders(*world)
    trainer(callback, root, logger=False).validate(Module(), evaluation, verbose=False)
    return dict(callback.latest)
