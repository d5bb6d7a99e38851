"""The data path: sources, two pipelines, and a stateless way from them to batches."""

from ser_lightning.data.benchmarks.threediebench import ThreeDIEBenchDataModule
from ser_lightning.data.datamodule import PartitionedDataModule
from ser_lightning.data.extra_views import LocalCrops, RotatedCrops
from ser_lightning.data.photometric import PhotometricRecipe
from ser_lightning.data.pipelines import CropViews, InvertibleViews
from ser_lightning.data.plan import BatchKey
from ser_lightning.data.render import render, replay
from ser_lightning.sources.base import ImageSet, Source, UnreadableImage
from ser_lightning.sources.fashion_mnist import FashionMNISTFiles
from ser_lightning.sources.folder import ImageFolder
from ser_lightning.sources.patterns import Patterns
from ser_lightning.sources.shapes import Shapes
from ser_lightning.sources.torchvision_set import TorchvisionSet

__all__ = [
    "BatchKey",
    "CropViews",
    "FashionMNISTFiles",
    "ImageFolder",
    "ImageSet",
    "InvertibleViews",
    "LocalCrops",
    "PartitionedDataModule",
    "Patterns",
    "PhotometricRecipe",
    "RotatedCrops",
    "Shapes",
    "Source",
    "ThreeDIEBenchDataModule",
    "TorchvisionSet",
    "UnreadableImage",
    "render",
    "replay",
]
