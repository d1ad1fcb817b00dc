"""Models as they are before they are looked at, and after it: their modules, mode, buffers and attributes."""

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.parametrizations import _SpectralNorm

from lgi.checks import describe


class GeneratorError(ValueError):
    """What is wrong with a generator, in words that need no others."""


class Watched:
    """A generator or feature map whose modules every call leaves as they were.

    Parameters
    ----------
    function : callable
        The modules are found where they are called, however deep in methods, partial functions and closures.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        # What torch.compile makes of a module holds the module.
        self.function = getattr(function, "_orig_mod", function)
        self.modules: list[nn.Module] = [self.function] if isinstance(self.function, nn.Module) else []
        self._replaced: dict[int, dict[Any, Any] | list[Any]] = {}  # attributes, buffers and what modules collect in
        self._moved: dict[int, Tensor] = {}  # buffers that are changed in place

    def __call__(self, x: Tensor) -> Any:
        """What the function gives at x."""
        before = [(place, place.copy()) for place in self._replaced.values()]
        values = [(buffer, buffer.clone()) for buffer in self._moved.values()]
        try:
            return self.function(x)
        except Exception as error:
            error.add_note(f"(lgi called it with {describe(x)}. Where it is not defined it may return NaN instead.)")
            raise
        finally:
            # In a transform of torch.func, what a module keeps of a call (a normalised weight, its last features) is a
            # tensor that nobody can use or copy afterwards.
            _put_back(before, values)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """See in a first call which modules there are and what of them it changes; refuse those in train mode."""
        seen: dict[nn.Module, list[tuple[Any, Any]]] = {}
        values: list[tuple[Tensor, Tensor]] = []
        called: set[nn.Module] = set()
        thread = threading.get_ident()

        def keep(module: nn.Module) -> None:
            for part in set(module.modules()) - seen.keys():
                # A scripted module makes its tensors anew for whoever asks, so that only their values tell a change.
                places = [] if isinstance(part, torch.jit.ScriptModule) else [vars(part), *vars(part).values()]
                seen[part] = [(place, place.copy()) for place in places if isinstance(place, dict | list)]
                values.extend((buffer, buffer.clone()) for buffer in part.buffers(recurse=False))

        def enter(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == thread and module not in called:
                # Before it runs: batch norm in train mode would move its running statistics.
                refuse_train_mode(module)
                keep(module)
                called.update(module.modules())
                self.modules += [] if module in self.modules else [module]

        for module in _held_by(self.function):
            keep(module)
        handle = register_module_forward_pre_hook(enter)
        try:
            with warnings.catch_warnings():
                # Its advice is not for whoever calls a metric, nor is the hook of any harm to compiled modules.
                warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are global")
                yield
        finally:
            handle.remove()
            before = [(place, old) for place, old in chain(*seen.values()) if not _holds(place, old)]
            values = [(buffer, value) for buffer, value in values if not torch.equal(buffer, value)]
            _put_back(before, values)
            self._replaced |= {id(place): place for place, _ in before}
            self._moved |= {id(buffer): buffer for buffer, _ in values}


def _holds(place: Any, old: Any) -> bool:
    """Whether a dict or list holds the same objects as its copy."""
    if isinstance(place, list):
        return len(place) == len(old) and all(a is b for a, b in zip(place, old, strict=True))
    return place.keys() == old.keys() and all(place[name] is value for name, value in old.items())


def _put_back(before: list[tuple[Any, Any]], values: list[tuple[Tensor, Tensor]]) -> None:
    for place, old in before:
        if isinstance(place, list):
            place[:] = old
        else:
            # Not cleared first: an interrupt there would leave a module without anything.
            place.update(old)
            for name in place.keys() - old.keys():
                del place[name]
    with torch.no_grad():
        for buffer, value in values:
            buffer.copy_(value)


def _held_by(function: Any, depth: int = 2) -> list[nn.Module]:
    """Modules that a function holds: a method's object, a partial's arguments, what it closes over, its globals."""
    if isinstance(function, nn.Module):
        return [function]
    held = [getattr(function, "__self__", None)]
    if isinstance(function, functools.partial):
        held += [function.func, *function.args, *function.keywords.values()]
    with suppress(TypeError, ValueError):  # no function of Python's; a variable that is not yet set
        names = inspect.getclosurevars(function)
        held += [*names.nonlocals.values(), *names.globals.values()]
    held = [part for part in held if depth and callable(part) and not isinstance(part, type)]
    return [module for part in held for module in _held_by(part, depth - 1)]


def refuse_train_mode(*functions: Any) -> None:
    """Refuse modules in train mode, if that makes their output random, dependent on the batch, or changes them."""
    for function in (f for f in functions if isinstance(f, nn.Module)):
        for name, module in function.named_modules():
            if wrong := _what_is_wrong(module):
                raise GeneratorError(f"{type(module).__name__} '{name}' of {type(function).__name__} {wrong}")


def _what_is_wrong(module: nn.Module) -> str | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return (
            "has no running statistics, so that a point's output depends on the other points of the batch, in eval "
            "mode too: train it with track_running_stats=True, or give it running_mean and running_var of a large batch"
        )
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "has no parameters yet: call the model once, then give it to PullbackMetric"
    # A frozen scripted module has no mode.
    if getattr(module, "training", False) and _depends_on_mode(module):
        return (
            "is in train mode, where its output is random or depends on the batch, or each call changes it: call "
            "eval() on the model"
        )
    return None


def _depends_on_mode(module: nn.Module) -> bool:
    always = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU, _SpectralNorm)
    return (
        isinstance(module, always)
        or (isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats)
        # The older form of spectral norm is a hook, not a module; by name, since torch is about to drop the class.
        or any(type(hook).__name__ == "SpectralNorm" for hook in module._forward_pre_hooks.values())
    )
