"""Counter-based random numbers: every draw is a pure function of where it is used.

Nothing here has a state that could be lost at a restart or depend on the number of workers:
the same (seed, stream, counter) always gives the same numbers, on any process.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (Philox).

The run's seed is `seed_everything`; `commands/fit.py` and `evaluate.py` hand it on.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

MAX_SEED = 2**64 - 1
_NUM_COUNTERS = 3  # Philox counts in four words; the first one runs within a draw


class Stream(IntEnum):
    """What random numbers are drawn for; streams of one seed are independent.

    The values are part of every run's definition: append, never renumber.
    """

    ORDER = 0  # the order of the samples in an epoch
    AUGMENT = 1  # crop box, flip and photometric draws of one image and view
    GROUP = 2  # half turn and flip of one image and view
    STEP = 3  # what all images of a step share: grid size and parity of the turns
    GENERATED = 4  # the pixels of generated data sets
    SUBSET = 5  # which images a subset for evaluation takes
    CORRUPTION = 6  # what a generated corruption draws for one image and severity
    PERTURBATION = 7  # what a generated perturbation sequence draws for one image
    REPLACEMENT = 8  # which images stand in for an unreadable one
    TURN = 9  # turns of crops, and angles of invertible views, of one image and view


def _words(name: str, values: Sequence[int] | np.ndarray) -> np.ndarray:
    for value in values:
        if not 0 <= value <= MAX_SEED:
            raise ValueError(f"{name} {value} is outside 0..2**64-1; use a non-negative number")
    return np.array([int(value) for value in values], dtype=np.uint64)


def _counter(counter: Sequence[int]) -> np.ndarray:
    if len(counter) > _NUM_COUNTERS:
        raise ValueError(f"{len(counter)} counters given, at most {_NUM_COUNTERS} fit")
    return _words("counter", [0, *counter] + [0] * (_NUM_COUNTERS - len(counter)))


def generator(seed: int, stream: Stream, *counter: int) -> np.random.Generator:
    """A fresh generator for one place of a run; the same arguments give the same numbers.

    Args:
        seed: the run's seed.
        stream: what the numbers are for.
        counter: up to three numbers that tell the place, for instance epoch and step.

    Raises:
        ValueError: a negative number, or more than three counters.
    """
    key = _words("seed", [seed, int(stream)])
    return np.random.Generator(np.random.Philox(key=key, counter=_counter(counter)))


def uniforms(
    seed: int,
    stream: Stream,
    epoch: int,
    indices: Sequence[int] | np.ndarray,
    view: int,
    count: int,
) -> np.ndarray:
    """(len(indices), count) float64 in [0, 1), a row per image of the data set.

    Equal to stacking `generator(seed, stream, epoch, index, view).random(count)`, without
    building a generator per row: row i depends on indices[i], not on its neighbours or its place.

    Raises:
        ValueError: a negative number.
    """
    words = _words("index", indices)
    philox = np.random.Philox(key=_words("seed", [seed, int(stream)]))
    source = np.random.Generator(philox)
    state = philox.state
    counter = state["state"]["counter"]
    counter[:] = _counter([epoch, 0, view])
    block = np.empty((len(words), count))
    for row, word in zip(block, words, strict=True):
        counter[2] = word
        philox.state = state  # also empties the buffer of the previous row
        source.random(out=row)
    return block
