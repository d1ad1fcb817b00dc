"""Derivatives of functions of a batch in reverse mode, and the arithmetic in which derivatives of any order exist."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

Linear: TypeAlias = Callable[[Tensor], Tensor]


def reverse(function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Linear, Tensor]:
    """``f(x)``, the linear function ``u -> J_f^T u``, and what ``function`` gives beside ``f(x)``.

    Notes
    -----
    torch.autograd.grad gets through what torch.func refuses: an autograd.Function in the older form (the operators of
    StyleGAN), activation checkpoints, hooks. Inside a transform of torch.func only torch.func's own reverse mode works.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        value, pull_all, beside = cast("tuple[Tensor, Any, Tensor]", vjp(function, x, has_aux=True))
        return value, lambda u: pull_all(u)[0], beside
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        value, beside = function(leaf)

    def pull(u: Tensor) -> Tensor:
        if not value.requires_grad:  # a constant
            return torch.zeros_like(leaf)
        graph = record or u.requires_grad
        return torch.autograd.grad(value, leaf, u, retain_graph=True, create_graph=graph, materialize_grads=True)[0]

    return (value, pull, beside) if record else (value.detach(), pull, beside.detach())


def reverse_twice(function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Linear, Tensor]:
    """``f(x)``, ``v -> J_f v`` (the transpose of the linear ``u -> J_f^T u``), and what ``function`` gives beside."""
    value, pull, beside = reverse(function, x)
    return value, reverse(lambda u: (pull(u), u), torch.zeros_like(value))[1], beside


@contextmanager
def differentiable(device: torch.device) -> Iterator[None]:
    """Compute so that derivatives are exact and exist in every mode; afterwards everything is as it was.

    Without TensorFloat-32 on a GPU, which has 10 bits of mantissa, and without autocast. Attention by plain products:
    the fused kernels have no second derivative, and some no forward one. Compiled code as it was written: what a
    compiler makes of it has none of either.
    """
    places: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul] if device.type == "cuda" else []
    before = [place.allow_tf32 for place in places]
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        # Only where something was compiled: the compiler takes seconds to import. torch 2.5 has no such switch.
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for place in places:
                place.allow_tf32 = False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for place, value in zip(places, before, strict=True):
                place.allow_tf32 = value
