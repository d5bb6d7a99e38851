"""AlexNet, the network that robustness is measured against: its errors, and itself."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torchvision.models import AlexNet_Weights, alexnet

ALEXNET_ERROR = 0.43478
"""Top-1 error rate of torchvision's AlexNet on ImageNet's validation images."""

ALEXNET_CORRUPTION_ERRORS: Mapping[str, tuple[float, ...]] = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.9487, 0.9872, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
    "frost": (0.6139, 0.79734, 0.8879, 0.89942, 0.9343),
    "fog": (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
    "brightness": (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
    "contrast": (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
"""Its error rates on ImageNet-C, severities 1 to 5.

Source: github.com/hendrycks/robustness, issue 10.
"""


def load_alexnet(path: str | None = None) -> nn.Module:
    """Builds torchvision's AlexNet with its published weights, without a download.

    Args:
        path: file of the weights; by default where torch keeps what it downloads.

    Raises:
        ValueError: there is no such file.
    """
    url = AlexNet_Weights.IMAGENET1K_V1.url
    default = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    file = default if path is None else Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist; fetch {url} and put it there, or give its place as "
            "--model.alexnet_weights FILE"
        )
    network: nn.Module = alexnet()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.requires_grad_(False).eval()
