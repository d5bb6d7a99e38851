"""A GPU where there is none: the CPU under another name, as strict about what meets and what waits.

It computes what the CPU does, so that it proves no number and no speed. But tensors of the host and
of the device cannot meet unnoticed, and whatever would make the host wait is noted with its place.
For a process of its own: what `pretend` changes stays changed.
"""

import traceback
from collections import Counter
from contextlib import contextmanager, suppress

import numpy as np
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from ser_lightning.cli import main

GPU = torch.device("cuda", 0)
WAITS: Counter[str] = Counter()
"""How often the host would have waited, by operation and place."""

_COPIES = ("aten::copy_", "aten::_to_copy")
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
_ASKING = (  # whose result, or the size of it, the host has to know
    "aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount",
)  # fmt: skip
_tensor, _as_tensor, _to = torch.tensor, torch.as_tensor, torch.Tensor.to


class OnGPU(torch.Tensor):
    """A tensor of the pretended device; torch takes it for one without values ("meta")."""

    @staticmethod
    def __new__(cls, values):
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, device="meta",
        )  # fmt: skip
        made.values = values
        return made

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})

    def __reduce_ex__(self, protocol):
        return self.values.__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        made = OnGPU(self.values.clone())
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        return memo.setdefault(id(self), made)

    def __format__(self, spec):
        return format(self.item(), spec) if self.ndim == 0 else repr(self)

    def __repr__(self, **options):
        return f"OnGPU({self.values!r})"

    def numpy(self, *options, **more):
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self):
        return self.cpu().tolist()

    # Torch makes tensors of plain values in these itself, on "meta" and so without values.
    def new_tensor(self, values, dtype=None):
        return torch.tensor(values, dtype=dtype or self.dtype, device=GPU)

    def where(self, condition, other):
        return torch.where(condition, self, _filled(other, self.dtype))

    def __getitem__(self, key):
        return super().__getitem__(_key(key))

    def __setitem__(self, key, value):
        super().__setitem__(_key(key), _filled(value, self.dtype))


def _filled(value, dtype):
    return value if isinstance(value, torch.Tensor) else OnGPU(_as_tensor(value, dtype=dtype))


def _key(key):
    if isinstance(key, tuple):
        return tuple(map(_key, key))
    return torch.tensor(key, device=GPU) if isinstance(key, list | np.ndarray) else key


def _run(operation, args, kwargs):
    """Runs an operation on the values, with what a GPU would say to it."""
    name = operation._schema.name
    args, kwargs = tree_map(_without_meta, (args, kwargs))
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    ours = [isinstance(tensor, OnGPU) for tensor in tensors]
    of_host = [t for t, is_ours in zip(tensors, ours, strict=True) if not is_ours and t.ndim]
    device = kwargs.get("device")
    to_gpu = any(ours) if device is None else torch.device(device).type != "cpu"
    if any(ours) and of_host and name not in (*_COPIES, *_INDEXING):
        raise RuntimeError(f"{name}: tensors on cuda:0 and cpu")
    if name in _INDEXING and any(ours) and not ours[0]:
        raise RuntimeError(f"{name}: a tensor on cpu indexed by one on cuda:0")
    generators = [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]
    if generators and to_gpu:
        raise RuntimeError(f"{name}: a generator on cpu for a tensor on cuda:0")
    is_mask = name in _INDEXING and any(tensor.dtype == torch.bool for tensor in tensors[1:])
    is_copy = name in _COPIES and {*ours, to_gpu} == {True, False}
    no_wait = kwargs.get("non_blocking") or (name == "aten::copy_" and args[2:] == (True,))
    if (is_copy and not no_wait) or (name in _ASKING and any(ours)) or is_mask:
        _note(name)
    if name in _INDEXING and any(ours) and of_host:
        _note(f"{name} by a tensor of the host")
    plain = tree_map(_plain, args), tree_map(_plain, kwargs)
    found = operation(*plain[0], **plain[1])
    if name == "aten::copy_":
        return args[0]
    if not to_gpu:
        return found
    made = tree_map(lambda x: OnGPU(x) if isinstance(x, torch.Tensor) else x, found)
    with suppress(RuntimeError):  # of what has no schema to tell aliases from
        return return_and_correct_aliasing(operation, args, kwargs, made)
    return made


def _without_meta(leaf):
    """Zeros for gradients that nothing flowed into, which torch makes itself."""
    if isinstance(leaf, torch.Tensor) and not isinstance(leaf, OnGPU) and leaf.is_meta:
        return OnGPU(torch.zeros(leaf.shape, dtype=leaf.dtype))
    return leaf


def _plain(leaf):
    if isinstance(leaf, OnGPU):
        return leaf.values
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


def _note(what):
    frames = [f for f in traceback.extract_stack() if "lightning/" in f.filename.replace("\\", "/")]
    where = f"{frames[-1].filename}:{frames[-1].lineno} {frames[-1].line}" if frames else "a test"
    WAITS[f"{what} at {where}"] += 1


def pretend():
    """Puts the pretended GPU in the place of CUDA's, for the rest of this process."""
    of_cuda = torch.library.Library("aten", "IMPL")
    pretend.library = of_cuda  # what it registers goes when it does
    of_cuda.impl("empty.memory_format", _empty, "CUDA", allow_override=True)
    of_cuda.impl("empty_strided", _empty_strided, "CUDA", allow_override=True)

    def on_gpu(device):
        return device is not None and torch.device(device).type == "cuda"

    def to(tensor, *args, **kwargs):  # without an index torch asks the driver for it
        args, kwargs = tree_map(
            lambda x: GPU if isinstance(x, str | torch.device) and on_gpu(x) else x, (args, kwargs)
        )
        return _to(tensor, *args, **kwargs)

    def making(function):
        def made(values, *args, device=None, **kwargs):
            found = function(values, *args, **kwargs)
            return to(found, device) if device is not None else found

        return made

    torch.tensor, torch.as_tensor = making(_tensor), making(_as_tensor)
    torch.Tensor.to, torch.Tensor.pin_memory = to, lambda tensor, *_: tensor
    torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda optimizer: None
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "set_device": None,
        "empty_cache": None, "get_device_capability": (7, 0), "get_rng_state_all": [],
        "set_rng_state_all": None, "manual_seed_all": None, "memory_stats": {}, "_lazy_init": None,
        "current_stream": _Event(), "synchronize": None, "reset_peak_memory_stats": None,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.Event, torch.inference_mode = _Event, _without_gradients
    made = DataLoader.__init__
    DataLoader.__init__ = lambda *args, **kwargs: made(*args, **{**kwargs, "pin_memory": False})


@contextmanager
def _without_gradients(mode=True):
    """In place of the inference mode, which takes no tensors of other classes."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not mode):
        yield


class _Event:
    def record(self, *_): ...

    def synchronize(self): ...


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    form = memory_format or torch.contiguous_format
    return OnGPU(torch.empty(size, dtype=dtype, memory_format=form))


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return OnGPU(torch.empty_strided(size, stride, dtype=dtype))


def waits_by_step(*args):
    """Runs `ser-fit` on the pretended GPU: the waits from the begin of a step to the next one's."""
    pretend()
    seen, advance = [], _TrainingEpochLoop.advance

    def noted(loop, fetcher):
        seen.append(WAITS.copy())
        advance(loop, fetcher)

    _TrainingEpochLoop.advance = noted
    main([*args, "--trainer.accelerator", "cuda"])
    return [after - before for before, after in zip(seen, [*seen[1:], WAITS], strict=True)]
