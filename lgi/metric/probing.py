"""Whether a generator can be trusted: :func:`probe` calls it at the first point, and near it.

One that cannot (train mode, rows that see each other, noise, disabled gradients, wrong shapes) is refused with what to
do about it before it gives a wrong number.
"""

import functools
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lgi.checks import describe
from lgi.metric.batching import finite
from lgi.metric.derivatives import differentiable
from lgi.metric.generators import FIXED, NUMPY, Outputs, decoder_of, refuse_fewer_digits
from lgi.metric.watching import GeneratorError, Watched


@dataclass(frozen=True)
class Layout:
    """What the first call of a generator shows."""

    dtype: torch.dtype  # of the points
    device: torch.device
    weighted: bool  # eq. 4: a standard deviation, and a feature map that weighs it
    n_data: int  # D
    n_features: int  # K, or D without a feature map
    n_values: int  # m, of h
    n_activations: int  # values that a call computes on its way
    forward: bool  # whether forward mode works


def probe(outputs: Outputs, z: Tensor) -> Layout:
    """Call the generator at a point ``z (1, d)`` and near it.

    Raises
    ------
    ValueError
        If it is in train mode, fails, mixes the rows of a batch, is random, not finite or cannot be differentiated.

    Warns
    -----
    UserWarning
        If the output is not larger than the latent space.
    """
    with ExitStack() as stack:
        for context in (torch.inference_mode(False), torch.no_grad(), differentiable(z.device)):
            stack.enter_context(context)
        # A copy of a tensor made in inference mode can be differentiated, unlike itself.
        z = z.detach().clone()
        with _looking(outputs), _Counting() as of_one:
            try:
                value, mean = outputs.values(z)
                value = value.clone()  # what a generator returns may be a buffer that its next call changes
            except Exception as error:
                raise _refusal(error, f"the generator or the feature map failed on {describe(z)}", outputs) from error
        # float32 inside, for points in float64, has digits enough.
        if _rounding(of_one.coarsest) > _rounding(torch.float32):
            refuse_fewer_digits("generator or the feature map computes in", of_one.coarsest, z)
        finite(value, z)
        # Once more, with what the first call changed put back before each call, as it will be from now on: noise that a
        # module draws when it has none yet shows.
        stack.enter_context(_looking(outputs))
        near, values, n_activations = _neighbours(outputs, z, of_one.n)
        _refuse_noise(outputs, near, value, values)
        n_data, n_values = mean[0].numel(), value.shape[1]
        stochastic = outputs.decode(z)[1] is not None
        n_features = n_values - n_data * (stochastic and not outputs.sampled)
        differs = (values[:, :n_features] != values[:1, :n_features]).any(1)
        forward = _check_derivatives(outputs, near[:2], near[differs][-1:], n_features)
    if z.shape[-1] >= n_features:
        warnings.warn(
            f"latent dimension {z.shape[-1]} >= output dimension {n_features}: the pull-back metric is degenerate "
            "or only a change of coordinates",
            stacklevel=7,  # whoever calls a method of the metric
        )
    weighted = stochastic and outputs.feature_map is not None and not outputs.sampled
    return Layout(z.dtype, z.device, weighted, n_data, n_features, n_values, max(n_values, n_activations), forward)


@contextmanager
def _looking(outputs: Outputs) -> Iterator[None]:
    with ExitStack() as stack:
        for function in (outputs.generator, outputs.feature_map):
            if function is not None:
                stack.enter_context(function.looking())
        yield


class _Counting(TorchDispatchMode):
    """Counts the values that torch computes, and finds the dtype of fewest digits; views are not computed."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.n = 0
        self.coarsest = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        schema = getattr(func, "_schema", None)
        if schema is None or all(found.alias_info is None for found in schema.returns):
            for x in tree_leaves(result):
                if isinstance(x, Tensor):
                    self.n += x.numel()
                    self.coarsest = max(self.coarsest, x.dtype, key=_rounding)
        return result


def _rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def _neighbours(outputs: Outputs, z: Tensor, n_of_one: int) -> tuple[Tensor, Tensor, int]:
    """``z (1, d)`` with two points beside it (3, d), ``h`` there (3, m), and how many values a row more computes.

    The latent space may be bounded (a ball, a cube), and ``z`` at its border: towards 0, ever closer, then the other
    way; else ``z`` three times.
    """
    weights = 1 - (torch.arange(z.shape[-1], device=z.device) % 2) / 2
    away = torch.ones_like(z) if not bool(z.any()) else z
    for share in (0.5, 1e-2, 1e-4, -1e-2, -1e-4, 0):
        near = z - share * torch.tensor([[0.0], [0.5], [1.0]]).to(z) * weights.to(z) * away
        try:
            with _Counting() as counting:
                values = outputs.values(near)[0].clone()
        except Exception as error:
            if share:
                continue
            what = "the generator or the feature map takes one point, and fails on three"
            raise _refusal(error, what, outputs, FIXED) from error
        if not share or bool(values.isfinite().all()):
            break
    return near, values, max(0, counting.n - n_of_one) // 2


def _refuse_noise(outputs: Outputs, z: Tensor, alone: Tensor, values: Tensor) -> None:
    """Refuse ``h`` (n, m) at ``z (n, d)`` that differs in a second call, alone (1, m) or with the rows in reverse."""
    again = outputs.values(z)[0]
    # Rounding differs a little where LAPACK's way depends on where in memory a matrix lies, and more where sums of a
    # kernel of a GPU are taken in whatever order their parts come.
    same = _alike(values, again, 100 * _rounding(z.dtype) if z.device.type == "cpu" else None)
    if not same and bool(values.isfinite().all()):
        raise ValueError(
            f"the output is random: the same points differ by {float((values - again).abs().max()):.2g} in two calls. "
            'Fix the noise (a buffer, noise_mode="const"), put dropout in eval mode, return the mean and not a sample'
        )
    if not (_alike(alone, values[:1]) and _alike(outputs.values(z.flip(0))[0].flip(0), values)):
        raise ValueError(
            "a point's output depends on the other points of the batch or its place among them, or is random: put "
            "batch norm and dropout in eval mode, `model.eval()`; statistics over the batch that stay in eval mode are "
            "replaced by fixed ones, noise and labels that differ from row to row by one row, noise[:1]"
        )


def _check_derivatives(outputs: Outputs, z: Tensor, other: Tensor, n_features: int) -> bool:
    """Whether forward mode works; ValueError if no derivative arrives, or if the two modes contradict each other.

    Of the value (n, m) at ``z``, the first ``n_features`` are of the mean; at ``other`` (0 or 1, d) they are not those
    of ``z[0]``.
    """
    _quieten_first_jvp()
    signs = 1 - 2 * (torch.arange(z.shape[-1], device=z.device) % 2).to(z)
    directions = torch.stack([torch.ones_like(signs), signs])
    try:
        value, pull, _ = outputs.reverse(z)
        value = value.clone()
        weights = torch.arange(value.numel(), device=z.device).to(value).cos().view_as(value)
        pulled, push = pull(weights), outputs.reverse_twice(z)[1]
        reverse = torch.stack([push(v.expand_as(z)) for v in directions])
    except Exception as error:
        what = "the generator or the feature map cannot be differentiated by torch"
        raise _refusal(error, what, outputs) from error
    forward = None
    if not (_is_scripted(outputs.generator) or _is_scripted(outputs.feature_map)):
        # The call itself has just succeeded in reverse mode: an error now says that forward mode is not available, or
        # (activation checkpoints) not below a reverse pass.
        with suppress(Exception):
            with torch.enable_grad():
                leaf = z.clone().requires_grad_()
                tangent = outputs.forward(leaf, directions[:1].expand_as(z))[1]
                if tangent.requires_grad:
                    torch.autograd.grad(tangent.sum(), leaf, allow_unused=True)
            forward = vmap(lambda v: outputs.forward(z, v.expand_as(z))[1])(directions)
    tangents = reverse if forward is None else forward
    # <u, J v> = <J^T u, v>, whatever the function is.
    scale = (tangents * weights).abs().sum((1, 2))
    gap = (tangents * weights).sum((1, 2)) - (pulled @ directions.mT).sum(0)
    if bool((gap.abs() > 1e-2 * scale.max()).any()) and forward is None:
        raise ValueError(
            "a backward of the generator or of the feature map cannot be differentiated, with respect to the gradient "
            "that it is given: write it in torch operations, without once_differentiable and numpy"
        )
    flat = not bool(tangents[..., :n_features].any())
    if flat and (not _is_linked(outputs, z) or (len(other) and _jumps(outputs, z[0], other[0], n_features))):
        raise ValueError(
            "the output changes with z in steps (round, sign, argmax, a comparison), or is cut off from it: something "
            f"in the generator or the feature map disables gradients (detach, torch.inference_mode, numpy). {NUMPY}"
        )
    if _is_made_up(outputs, z, push, value, n_features):
        raise ValueError(
            "the output does not change as its derivatives say: it is quantised, with a derivative that is made up "
            "(a straight-through estimator, as in VQ-VAEs), or has a wrong custom derivative. A metric of steps is 0: "
            "give PullbackMetric the part after the quantisation"
        )
    if forward is not None and not _alike(forward, reverse, 1e-2):
        raise ValueError(
            "forward and reverse derivatives contradict each other: something in the generator or the feature map "
            "disables gradients (torch.no_grad), detaches a part of it, or has a wrong custom derivative"
        )
    return forward is not None


def _is_made_up(outputs: Outputs, z: Tensor, push: Any, value: Tensor, n_features: int) -> bool:
    """Whether ``h`` (n, m) hardly changes with z, however small the step, where its derivatives say that it does."""
    found = False
    # Far from 0 the first of them may be longer than whatever is smooth.
    for share in (1e-2, 1e-5, 1e-8):
        step = share * (z[1:] - z[:1])
        told, seen = push(step.expand_as(z))[:, :n_features], (outputs.values(z + step)[0] - value)[:, :n_features]
        if bool(told.abs().max() <= 100 * _rounding(z.dtype) * value.abs().max()):
            break
        found = bool(seen.norm() < 0.01 * told.norm())
        if not found:
            break
    return found


def _jumps(outputs: Outputs, a: Tensor, b: Tensor, n_features: int) -> bool:
    """Whether no derivative is found on the way from ``a`` to ``b`` (d,), on which the output changes.

    Between the plateaus of a classifier that is sharp, but smooth, halving the interval that holds the change soon
    leads to points with a derivative; at a step it leads to none.
    """
    for _ in range(64):  # more than there are bits in a number
        middle = (a + b) / 2
        values, pull, _ = outputs.reverse(torch.stack([a, middle, b]))
        chosen = torch.zeros_like(values)
        chosen[:, :n_features] = torch.arange(1, n_features + 1, device=a.device).to(values).cos()
        values = values[:, :n_features].clone()
        if bool(pull(chosen).any()):
            return False
        a, b = (a, middle) if (values[1] - values[0]).norm() > (values[2] - values[1]).norm() else (middle, b)
    return True


def _is_linked(outputs: Outputs, z: Tensor) -> bool:
    """Whether a graph leads from ``h`` to ``z``."""
    with torch.enable_grad():
        leaf = z.clone().requires_grad_()
        total = outputs.values(leaf)[0].sum()
        return total.requires_grad and torch.autograd.grad(total, leaf, allow_unused=True)[0] is not None


def _alike(a: Tensor, b: Tensor, relative: float | None = None) -> bool:
    """Whether tensors are equal up to rounding: by default that of values, whose order of summation differs."""
    relative = torch.finfo(a.dtype).eps ** 0.5 if relative is None else relative
    return torch.allclose(a, b, rtol=relative, atol=relative * float(a.abs().max()), equal_nan=True)


def _refusal(error: Exception, what: str, outputs: Outputs, remedy: str = "") -> ValueError:
    """An error of a generator with what to do about it; one that says so itself is left as it is."""
    if isinstance(error, GeneratorError):
        return error
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(".")
    remedies = [sentence for pattern, sentence in _REMEDIES if re.search(pattern, text)]
    parameter = next((p for module in outputs.generator.modules for p in module.parameters()), None)
    has = "no known parameters" if parameter is None else f"parameters {parameter.dtype} on {parameter.device}"
    told = [decoder_of(outputs.generator.function), *(remedies or [remedy]), f"The generator has {has}; check the last"]
    return ValueError(f"{what}: {text}. {' '.join(filter(None, told))} dimension, dtype and device of z")


# What errors of torch, numpy and Python say, and what to do.
_REMEDIES = (
    (r"numpy|ndarray|sklearn|array", NUMPY),
    (
        r"[345]D|xpected \d+ dim|unpack|permute|conv\dd|conv_transpose|group_norm|number of dim|mensions",
        "Latents that are not flat, of 4 x 8 x 8 say, are made of flat ones z (n, 256): "
        "PullbackMetric(nn.Sequential(nn.Unflatten(1, (4, 8, 8)), generator)).",
    ),
    (r"must match|Sizes of tensors|expanded size|invalid for input|batch_size|batch size", FIXED),
    (r"more than 1 value per channel|more than 1 spatial", "Batch norm in train mode: model.eval()."),
    (
        r"positional argument|keyword",
        "It is called with z alone: lambda z: generator(z, label.expand(len(z), -1)) fixes what else it takes.",
    ),
    (
        r"derivative for .* not implemented|not support backward",
        "torch has no second derivative of that operation: use another, of plain torch operations (attention by "
        "scaled_dot_product_attention, without sdpa_kernel).",
    ),
    (r"indices", "Whole numbers have no derivative: give the part after nn.Embedding, and let z be what that gives."),
    (r"use_reentrant|CheckpointFunction", "Activation checkpoints: checkpoint(..., use_reentrant=False)."),
)


def _is_scripted(watched: Watched | None) -> bool:
    # The executor of torch.jit may drop tangents from the second call on, without a word (seen in torch 2.15).
    parts = [] if watched is None else [watched.function, *(m for own in watched.modules for m in own.modules())]
    return any(isinstance(part, torch.jit.ScriptModule | torch.jit.ScriptFunction) for part in parts)


@functools.cache
def _quieten_first_jvp() -> None:
    """Run one jvp with the deprecation of `torch.jit.script` silenced: the first of a process imports scripted code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script")
        jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))
