"""Soft Equivariance Regularization for invariant self-supervised learning."""

__version__: str


def __getattr__(name: str) -> str:
    """The version, looked up when it is asked for."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - not needed by the help

        return version("ser-lightning")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
