"""What most benchmarks time: several kinds of work that take turns."""

import statistics
import time
from collections.abc import Callable, Mapping


def medians(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    num_warm: int = 1,
) -> dict[str, float]:
    """Median seconds of each work; the first turns, which fill caches and compile, are left out."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(num_warm + repeats):
        for name, work in works.items():
            start = clock()
            work()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values[num_warm:]) for name, values in seconds.items()}
