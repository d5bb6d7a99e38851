"""Speed and memory of the equivariance loss against the public code's dense formulation.

Run: python benchmarks/equivariance_loss.py --json result.json

Both compute the same loss of one direction, forward and backward with gradients to both sides, in
one process without compilation. The dense formulation holds all pairs of tokens at once: a matrix
of similarities, a mask filled image by image, an exponential and a logarithm (the public code
gathers its features without gradient; here they are not gathered, so that it has one). Times are
medians of interleaved repetitions; memory is the growth of the resident set, each variant in a
process of its own. Only ratios of one run mean something, on a machine with nothing else to do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_lightning.regularizers import token_info_nce

TEMPERATURE = 0.3
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Loss = Callable[[Tensor, Tensor], Tensor]


def dense(anchors: Tensor, candidates: Tensor) -> Tensor:
    """All pairs at once: rows are candidates, columns anchors; softmax without a maximum."""
    num_images, num_tokens, dim = anchors.shape
    rows, columns = candidates.reshape(-1, dim), anchors.reshape(-1, dim)
    similarity = rows @ columns.T / TEMPERATURE
    mask = torch.ones(similarity.shape)
    for image in range(num_images):
        own = slice(image * num_tokens, (image + 1) * num_tokens)
        mask[own, own] = 0
    mask.fill_diagonal_(1)
    exponentials = torch.exp(similarity.float()) * mask
    return (exponentials.sum(0).log() - similarity.diagonal().float()).mean()


def blockwise(anchors: Tensor, candidates: Tensor) -> Tensor:
    """The project's loss, gradients to both sides."""
    return token_info_nce(anchors, candidates, 0, TEMPERATURE)


def detached(anchors: Tensor, candidates: Tensor) -> Tensor:
    """The project's loss with a momentum branch: no gradient to the candidates."""
    return token_info_nce(anchors, candidates.detach(), 0, TEMPERATURE)


def masked(anchors: Tensor, candidates: Tensor) -> Tensor:
    """The same between crops: three tokens of four have a counterpart."""
    places = torch.arange(anchors.shape[1]).expand(anchors.shape[:2])
    return token_info_nce(anchors, candidates.detach(), 0, TEMPERATURE, valid=places % 4 > 0)


LOSSES: dict[str, Loss] = {
    "dense": dense,
    "blockwise": blockwise,
    "detached": detached,
    "masked": masked,
}


def features(images: int, tokens: int, dim: int, dtype: str) -> tuple[Tensor, Tensor]:
    """Two random unit token maps that require gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = (images, tokens, dim)
    first, second = (
        F.normalize(torch.randn(shape, generator=generator), dim=-1).to(DTYPES[dtype])
        for _ in range(2)
    )
    return first.requires_grad_(), second.requires_grad_()


def step(name: str, pair: tuple[Tensor, Tensor]) -> float:
    """One forward and backward; returns the loss."""
    for x in pair:
        x.grad = None
    loss = LOSSES[name](*pair)
    loss.backward()
    return loss.item()


def busy_seconds_of_others() -> float:
    """Processor time that other processes of this machine have used (Linux only)."""
    user, nice, system, _, _, interrupts, soft = Path("/proc/stat").read_text().split()[1:8]
    busy = sum(map(int, (user, nice, system, interrupts, soft))) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:2])


def times(options: argparse.Namespace, dtype: str) -> dict[str, float]:
    """Median seconds of each variant and of the three matrix products, interleaved.

    And the best as well, which suffers less from other processes; "others" is how many cores
    those used meanwhile.
    """
    pair = features(options.images, options.tokens, options.dim, dtype)
    keys = pair[0].detach().flatten(0, 1)
    pairs = torch.empty(min(len(keys), 3 * options.tokens), len(keys), dtype=keys.dtype)
    num_blocks = len(keys) / len(pairs)

    def products() -> None:
        """Of one block of anchors: logits and both gradients."""
        block = keys[: len(pairs)]
        torch.mm(block, keys.T, out=pairs)
        torch.mm(pairs, keys)
        torch.mm(pairs.T, block)

    seconds: dict[str, list[float]] = {name: [] for name in (*LOSSES, "products")}
    began, others = time.perf_counter(), busy_seconds_of_others()
    for repetition in range(options.repeats + 1):
        for name, measured in seconds.items():
            start = time.perf_counter()
            if name == "products":
                products()
            else:
                step(name, pair)
            if repetition:  # the first one warms up
                measured.append(time.perf_counter() - start)
    medians = {name: statistics.median(measured) for name, measured in seconds.items()}
    others = (busy_seconds_of_others() - others) / (time.perf_counter() - began)
    best = {f"best_{name}": min(measured) for name, measured in seconds.items()}
    return medians | best | {"products": medians["products"] * num_blocks, "others": others}


def resident_set(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1000
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only")


def measure_memory(name: str, shape: tuple[int, int, int], dtype: str) -> None:
    """Prints the loss, and the peak of the resident set over that of the features, as JSON."""
    step(name, features(2, shape[1], shape[2], dtype))  # load the libraries' kernels
    pair = features(*shape, dtype)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident_set("VmRSS")
    value = step(name, pair)
    print(json.dumps({"megabytes": resident_set("VmHWM") - before, "loss": value}))


def memory(name: str, images: int, options: argparse.Namespace, dtype: str) -> dict[str, float]:
    """`measure_memory` in a process of its own."""
    sizes = [str(x) for x in (images, options.tokens, options.dim)]
    command = [sys.executable, __file__, "--memory-of", name, *sizes, dtype]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output)
    return result


def measure(options: argparse.Namespace, dtype: str) -> dict[str, float]:
    """All figures of one dtype, ratios above 1 in favour of the project."""
    seconds = times(options, dtype)
    reference = memory("dense", options.images, options, dtype)
    ours = memory("blockwise", options.images, options, dtype)
    twice = memory("blockwise", 2 * options.images, options, dtype)
    few, many = (memory("masked", n * options.images, options, dtype) for n in (1, 2))
    return {
        "speed": seconds["dense"] / seconds["blockwise"],
        "speed_of_best_repetitions": seconds["best_dense"] / seconds["best_blockwise"],
        "speed_detached": seconds["dense"] / seconds["detached"],
        "products_share": seconds["products"] / seconds["blockwise"],
        "memory_saving": reference["megabytes"] / ours["megabytes"],
        "memory_growth": twice["megabytes"] / ours["megabytes"],
        "memory_growth_masked": many["megabytes"] / few["megabytes"],
        "value_difference": abs(reference["loss"] - ours["loss"]),
        "cores_used_by_others": seconds["others"],
        "dense_seconds": seconds["dense"],
        "blockwise_seconds": seconds["blockwise"],
        "detached_seconds": seconds["detached"],
        "masked_seconds": seconds["masked"],
        "dense_megabytes": reference["megabytes"],
        "blockwise_megabytes": ours["megabytes"],
        "blockwise_megabytes_twice_the_images": twice["megabytes"],
    }


def report(options: argparse.Namespace, results: dict[str, dict[str, float]]) -> None:
    """Prints one column per dtype."""
    print(f"{options.images} images x {options.tokens} tokens x {options.dim} channels,")
    print(f"median of {options.repeats}, {torch.get_num_threads()} threads")
    print(f"{'':38}" + "".join(f"{dtype:>10}" for dtype in results))
    for name in next(iter(results.values())):
        row = "".join(f"{result[name]:10.4g}" for result in results.values())
        print(f"{name.replace('_', ' '):38}{row}")
    print("goals: bf16 speed >= 2, bf16 memory saving >= 10, memory growth <= 2,")
    print("       value difference <= 1e-3; times count only if others used below 0.15 cores")


def main() -> None:
    """Parses the command line, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=64, help="invertible images")
    parser.add_argument("--tokens", type=int, default=196, help="tokens per image")
    parser.add_argument("--dim", type=int, default=512, help="channels of the projector")
    parser.add_argument("--dtype", choices=list(DTYPES), nargs="+", default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=5, help="timed repetitions, at least 3")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--memory-of", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        name, *shape, dtype = options.memory_of
        images, tokens, dim = map(int, shape)
        measure_memory(name, (images, tokens, dim), dtype)
        return
    if options.repeats < 3:
        parser.error(f"--repeats {options.repeats} gives no median; use at least 3")
    results = {dtype: measure(options, dtype) for dtype in options.dtype}
    report(options, results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
