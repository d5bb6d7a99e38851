"""Error rates and flips relative to those of another network: mCE, relative mCE, mFR, mT5D.

Everything is keyed by the name of the corruption or perturbation: lists of constants in another
order than the list of names are a known mistake.

Source: Hendrycks & Dietterich 2019, arXiv 1903.12261, and its public evaluation code.
"""

from collections.abc import Iterable, Mapping, Sequence

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

ALEXNET = "alexnet"
"""The network that published ratios are relative to."""


def accuracy_percent(errors: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Accuracy in percent of each corruption, averaged over its severities.

    Args:
        errors: by corruption, the error rate in [0, 1] at each severity.

    Raises:
        ValueError: if a corruption has no severity, or a rate is not in [0, 1].
    """
    return {name: 100 * (1 - _total(name, rates) / len(rates)) for name, rates in errors.items()}


def corruption_errors(
    errors: Mapping[str, Sequence[float]],
    baseline: Mapping[str, Sequence[float]],
    clean_error: float = 0.0,
    clean_baseline_error: float = 0.0,
) -> dict[str, float]:
    """Corruption error (CE) in percent of a baseline's; with clean errors the relative one (RCE).

        CE_c = 100 * sum_s E_sc / sum_s B_sc
        RCE_c = 100 * sum_s (E_sc - E_clean) / sum_s (B_sc - B_clean)

    Args:
        errors: by corruption, the error rate E in [0, 1] at each severity.
        baseline: the rates B of the baseline (AlexNet) at the same severities; may hold more
            corruptions.
        clean_error: the error rate in [0, 1] on the clean images.
        clean_baseline_error: the baseline's.

    Returns:
        By corruption; mCE and relative mCE are `mean_over(..., CORRUPTIONS)`.

    Raises:
        ValueError: as `accuracy_percent`, or if the baseline lacks a corruption or severity, or a
            corruption does not harm it.
    """
    _check_names(errors, baseline, "the baseline")
    result = {}
    for name, rates in errors.items():
        if len(rates) != len(baseline[name]):
            raise ValueError(
                f"{name} has {len(rates)} severities and the baseline {len(baseline[name])}; "
                "measure the same ones"
            )
        added = _total(name, rates) - len(rates) * clean_error
        baseline_added = _total(name, baseline[name]) - len(rates) * clean_baseline_error
        if baseline_added <= 0:
            raise ValueError(
                f"{name} does not raise the baseline's error above clean_baseline_error "
                f"{clean_baseline_error}; give rates in [0, 1] of the same network"
            )
        result[name] = 100 * added / baseline_added
    return result


def relative_to(values: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, float]:
    """Percent of a baseline (AlexNet), which may hold more names, by perturbation.

    Flip probabilities give flip rates FR, top-5 distances T5D; mFR and mT5D are
    `mean_over(..., PERTURBATIONS)`.

    Raises:
        ValueError: if the baseline lacks a perturbation or is not positive there.
    """
    _check_names(values, baseline, "the baseline")
    for name in values:
        if baseline[name] <= 0:
            raise ValueError(
                f"the baseline's {name} is {baseline[name]}, which must be positive; measure it "
                "again"
            )
    return {name: 100 * value / baseline[name] for name, value in values.items()}


def mean_over(values: Mapping[str, float], names: Sequence[str]) -> float:
    """The plain mean of the values of the names that a benchmark averages, as `CORRUPTIONS`.

    Raises:
        ValueError: if a name is missing: the mean over fewer is another benchmark.
    """
    if not names:
        raise ValueError("a mean over no names; give at least one")
    _check_names(names, values, "the average")
    return sum(values[name] for name in names) / len(names)


def _total(name: str, rates: Sequence[float]) -> float:
    """The sum over severities, which must be error rates."""
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise ValueError(
            f"{name} has the error rates {list(rates)}; give at least one, each in [0, 1] and not "
            "in percent"
        )
    return sum(rates)


def _check_names(wanted: Iterable[str], given: Mapping[str, object], whose: str) -> None:
    missing = [name for name in wanted if name not in given]
    if missing:
        raise ValueError(
            f"{whose} lacks {', '.join(missing)}; measure them too, or leave the number out"
        )
