"""The data path: sources, two pipelines, and a stateless way from them to batches."""

from ser_lightning.data.crops import LocalCrops, RotatedCrops
from ser_lightning.data.datamodule import PartitionedDataModule
from ser_lightning.data.fashion_mnist import FashionMNISTFiles
from ser_lightning.data.folder import ImageFolder
from ser_lightning.data.partition import BatchKey
from ser_lightning.data.photometric import PhotometricRecipe
from ser_lightning.data.records import replay
from ser_lightning.data.shapes import Shapes
from ser_lightning.data.sources import ImageSet, Source, UnreadableImage
from ser_lightning.data.torchvision_set import TorchvisionSet
from ser_lightning.data.views import CropViews, InvertibleViews, render

__all__ = [
    "BatchKey",
    "CropViews",
    "FashionMNISTFiles",
    "ImageFolder",
    "ImageSet",
    "InvertibleViews",
    "LocalCrops",
    "PartitionedDataModule",
    "PhotometricRecipe",
    "RotatedCrops",
    "Shapes",
    "Source",
    "TorchvisionSet",
    "UnreadableImage",
    "render",
    "replay",
]
