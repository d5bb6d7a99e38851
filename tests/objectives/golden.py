"""Prints the golden losses of every objective, for the `GOLDEN` of its test file.

Run it for a new objective, or when a change of numbers is meant; the commit then says why.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from objectives.tiny_run import tiny_fit
    from support import objective_classes

    wanted = sys.argv[1:]
    for cls in objective_classes():
        if not wanted or cls.__name__ in wanted:
            print(cls.__name__, [round(loss, 6) for loss in tiny_fit(cls).losses[:5]])
