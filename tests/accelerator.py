"""A simulated accelerator: the torch device "sim", which computes on the CPU and is otherwise as strict as a GPU.

Tensors report the device ``sim:0``. An operation that mixes them with CPU tensors of one or more dimensions fails, as
on a GPU. What a GPU must be waited for is counted, with the line of lgi that asked for it: values that are read
(``.item()``, ``.cpu()``, ``bool``) and results whose size depends on values (``nonzero``, a mask as an index).
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "sim"
# Operations that read values, and those whose results are as large as the values tell.
_READ = {"_local_scalar_dense", "equal", "is_nonzero", "item", "allclose"}
_SIZED = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
_COPIES = {"copy_", "_copy_from"}
_INDEXED = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
# They resize the tensor that they fill, which a wrapper of another tensor cannot follow.
_RESIZED = {torch.eye, torch.arange, torch.linspace, torch.randperm}
_MADE_OF_NUMBERS = {torch.tensor, torch.as_tensor, Tensor.new_tensor}

waits: Counter[str] = Counter()
"""How often a GPU would have been waited for, by the line of lgi that is to blame."""


def _blame() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        if "/lgi/" in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename.rpartition('/lgi/')[2]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside lgi"


class SimTensor(Tensor):
    """Tensor of the simulated device, which holds its values in a tensor on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "SimTensor":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"SimTensor({self.held!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Any, kwargs: Any) -> Any:
    """Apply an operation to what tensors of the device hold, as strictly as a GPU would."""
    name = operation._schema.name.partition("::")[2]
    flat, spec = pytree.tree_flatten((args, kwargs))
    own = [x for x in flat if isinstance(x, SimTensor)]
    foreign = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, SimTensor) and x.ndim > 0]
    there = name in _COPIES and isinstance(args[0], SimTensor)
    if name == "_to_copy":
        there = torch.device(kwargs.get("device") or (NAME if own else "cpu")).type == NAME
    elif own and foreign and name not in _COPIES | _INDEXED:  # a GPU takes indices from the CPU, one by one
        shapes = [tuple(x.shape) for x in own], [tuple(x.shape) for x in foreign]
        raise RuntimeError(f"all tensors must be on one device: {operation} got {NAME} {shapes[0]}, cpu {shapes[1]}")
    if name in _READ | _SIZED or (name in _COPIES | {"_to_copy"} and own and not there):
        waits[_blame()] += 1
    elif name in _INDEXED:
        waits[_blame()] += sum(isinstance(x, SimTensor) and x.dtype == torch.bool for x in args[1])
    elif name == "resize_":
        raise NotImplementedError("a wrapper cannot be resized: make the tensor in another way")
    elif name == "_linalg_eigh":
        raise RuntimeError("cuSOLVER gives up on some matrices: lgi.metric.batching.eigh")
    if "device" in kwargs:
        flat, spec = pytree.tree_flatten((args, kwargs | {"device": torch.device("cpu")}))
        if name == "_to_copy" and not there:
            flat, spec = pytree.tree_flatten((args, kwargs))
    held_args, held_kwargs = pytree.tree_unflatten([x.held if isinstance(x, SimTensor) else x for x in flat], spec)
    result = operation(*held_args, **held_kwargs)
    if name in _READ or (name == "_to_copy" and not there):
        return result
    if name in _COPIES:
        return args[0]
    # What is changed in place comes back as the object that it was.
    known = {id(x.held): x for x in own}
    return pytree.tree_map_only(Tensor, lambda x: known[id(x)] if id(x) in known else SimTensor(_dense(x)), result)


def _dense(x: Tensor) -> Tensor:
    return x.clone() if x._is_zerotensor() else x


class _Created(TorchFunctionMode):
    """Creates on the CPU what torch creates below its dispatcher, or by resizing."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in _MADE_OF_NUMBERS:
            like = args[0] if isinstance(args[0], Tensor) else None
            device = kwargs.pop("device", None if like is None else like.device)
            if function is Tensor.new_tensor:
                kwargs.setdefault("dtype", like.dtype)
                function, args = torch.tensor, args[1:]
            made = function(*args, **kwargs)
            return made if device is None else made.to(device)
        if function in _RESIZED and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return SimTensor(function(*args, **{name: x for name, x in kwargs.items() if name != "device"}))
        if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], SimTensor):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i).to(NAME) if isinstance(i, list) else i for i in index)
            args = (args[0], index, *args[2:])
        return function(*args, **kwargs)


class _Backend:
    """What torch asks the module of a device for: there is none whose random state could be kept."""

    is_available = is_initialized = staticmethod(lambda: False)
    device_count = current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)


@cache
def _registered() -> torch.library.Library:
    """Make torch know the device; once in a process, it cannot be taken back."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")
    return fallback


@contextmanager
def simulated() -> Iterator[None]:
    """The device is there, and nothing has been counted yet."""
    _registered()
    # A forward derivative that is 0 is a tensor without memory, whose products torch works out on the device "meta".
    zeros = torch.library.Library("aten", "IMPL")
    for name in ("mul", "div", "add", "sub"):
        operation = getattr(torch.ops.aten, name).Tensor

        def dense(a: Any, b: Any, *, operation: Any = operation, **kwargs: Any) -> Any:
            return operation(_dense(a), _dense(b), **kwargs)

        zeros.impl(f"{name}.Tensor", dense, "ZeroTensor")
    waits.clear()
    try:
        with _Created():
            yield
    finally:
        zeros._destroy()


def table(counts: Counter[str]) -> str:
    """Lines of lgi and how often each was counted, the most first."""
    return "\n".join(f"{n:5} {line}" for line, n in (+counts).most_common())
