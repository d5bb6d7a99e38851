"""Where images come from: one data set per file.

`base.py` says what a source is, `folder.py` and `splits.py` what folders mean, with and without
classes, `listing.py` and `decode.py` how files are found and read.
"""

import pkgutil
from importlib import import_module

# Every file is imported, so that a configuration may name a source by its class alone.
for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
