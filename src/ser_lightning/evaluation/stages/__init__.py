"""The stages of evaluation: one file each, run by `ser-fit evaluate`."""

import pkgutil
from importlib import import_module

# Every file is imported, so that a configuration may name a stage by its class alone.
for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
