"""Models as they are before they are looked at, and after it: their modules, mode, buffers and attributes."""

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm


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
        self._changed: list[_Before] = []

    def __call__(self, x: Tensor) -> Any:
        """What the function gives at x."""
        try:
            return self.function(x)
        finally:
            # In a transform of torch.func, what a module keeps of a call (a normalised weight, its last features) is a
            # tensor that nobody can use or copy afterwards.
            for before in self._changed:
                before.put_back()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """See in a first call which modules there are and what of them it changes; refuse those in train mode."""
        seen: dict[int, _Before] = {}
        thread = threading.get_ident()

        def keep(module: nn.Module) -> None:
            seen.update({id(part): _Before(part) for part in module.modules() if id(part) not in seen})

        def enter(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == thread and not any(module is known for known in called):
                # Before it runs: batch norm in train mode would move its running statistics.
                refuse_train_mode(module)
                keep(module)
                if module not in self.modules:
                    self.modules.append(module)
                called.extend(module.modules())

        called: list[nn.Module] = []
        for module in _held_by(self.function):
            keep(module)
        handle = register_module_forward_pre_hook(enter)
        try:
            with warnings.catch_warnings():
                # Its advice is not for whoever calls a metric, nor is the hook of any harm to compiled modules.
                warnings.filterwarnings(
                    "ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks"
                )
                yield
        finally:
            handle.remove()
            known = [before for before in self._changed if id(before.module) not in seen]
            self._changed = known + [before for before in seen.values() if before.is_past()]
            for before in self._changed:
                before.put_back()


def _held_by(function: Any, depth: int = 4) -> Iterator[nn.Module]:
    """Modules that a function holds: in a method's object, a partial's arguments, a closure, names of its module."""
    if isinstance(function, nn.Module):
        yield function
        return
    held = [getattr(function, name, None) for name in ("__self__", "__func__", "func")]
    held += [*getattr(function, "args", ()), *getattr(function, "keywords", {}).values()]
    if inspect.isfunction(function):
        held += [*(function.__defaults__ or ()), *(cell.cell_contents for cell in function.__closure__ or ())]
        held += [function.__globals__.get(name) for name in function.__code__.co_names]
    elif not inspect.ismodule(function):
        held += getattr(function, "__dict__", {}).values()
    for part in held if depth else ():
        if callable(part) and not inspect.isclass(part) and not inspect.isbuiltin(part):
            yield from _held_by(part, depth - 1)


class _Before:
    """A module's attributes, and its buffers with their values, before it is called."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        # A scripted module makes its buffers anew for whoever asks, so that only their values tell a change.
        self.buffers = {} if isinstance(module, torch.jit.ScriptModule) else dict(module._buffers)
        self.values = {name: buffer.clone() for name, buffer in module.named_buffers(recurse=False)}

    def is_past(self) -> bool:
        """Whether a call has changed anything; from now on, only values that it has changed are looked after."""
        now = dict(self.module.named_buffers(recurse=False))
        # Where there is a new tensor, the old one may have been changed before.
        now |= {name: buffer for name, buffer in self.buffers.items() if buffer is not None}
        self.values = {name: value for name, value in self.values.items() if not torch.equal(now[name], value)}
        places = ((vars(self.module), self.attributes), (self.module._buffers, self.buffers))
        replaced = any(
            place.keys() != old.keys() or any(place[name] is not value for name, value in old.items())
            for place, old in places[: 1 if isinstance(self.module, torch.jit.ScriptModule) else 2]
        )
        return replaced or bool(self.values)

    def put_back(self) -> None:
        """Make the module what it was."""
        for name in vars(self.module).keys() - self.attributes.keys():
            del vars(self.module)[name]
        vars(self.module).update(self.attributes)
        if self.buffers:
            self.module._buffers.clear()
            self.module._buffers.update(self.buffers)
        with torch.no_grad():
            for name, value in self.values.items():
                self.module.get_buffer(name).copy_(value)


def refuse_train_mode(*functions: Any) -> None:
    """Refuse modules in train mode, if that makes their output random, dependent on the batch, or changes them."""
    for function in (f for f in functions if isinstance(f, nn.Module)):
        for name, module in function.named_modules():
            which = f"{type(module).__name__} '{name}' of {type(function).__name__}"
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
                raise ValueError(
                    f"{which} has no running statistics, so that a point's output depends on the other points of the "
                    "batch, in eval mode too: train it with track_running_stats=True, or give it the mean and the "
                    "variance of a large batch (running_mean, running_var)"
                )
            if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
                raise ValueError(f"{which} has no parameters yet: call the model once, then give it to PullbackMetric")
            if module.training and _depends_on_mode(module):
                raise ValueError(
                    f"{which} is in train mode, where its output "
                    "is random or depends on the batch, or each call changes it: call eval() on the model"
                )


def _depends_on_mode(module: nn.Module) -> bool:
    always = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU, _SpectralNorm)
    return (
        isinstance(module, always)
        or (isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats)
        # The older form of spectral norm is a hook, not a module; by name, since torch is about to drop the class.
        or any(type(hook).__name__ == "SpectralNorm" for hook in module._forward_pre_hooks.values())
    )
