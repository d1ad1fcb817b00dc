"""Any number of points in bounded memory, chunk after chunk; what goes in is points, and what comes out is finite."""

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lgi.checks import NotFiniteError, describe
from lgi.metric.derivatives import differentiable


def in_chunks(
    function: Callable[..., Any], n_rows: Callable[[Tensor], int], *tensors: Tensor, recompute: bool = False
) -> Any:
    """Apply a function to chunks of points and vectors, and give its results the leading dimensions back.

    Parameters
    ----------
    function : callable
        Of tensors (n, d), one for each of ``tensors``; returns a tensor (n, *) or a tuple of such.
    n_rows : callable
        Of the first point (1, d); returns how many points make a chunk.
    *tensors : Tensor, all of shape (..., d)
    recompute : bool
        Whether, of more than four chunks, a graph keeps the points only, and a reverse pass computes the chunks anew,
        one after the other; for functions without derivatives inside.

    Returns
    -------
    Tensor, shape (..., *), or tuple of such
        With a graph if a tensor requires a gradient and gradients are enabled.
    """
    leading = tensors[0].shape[:-1]
    n = leading.numel()
    # No points have a result too, of the right trailing shape: that of one point, cut to none. Contiguous: elements of
    # an expanded tensor share their memory, and forward mode and autograd would write there once for each of them.
    flat = [(x.reshape(-1, x.shape[-1]) if n else first_point(x)).contiguous() for x in tensors]
    # Inside a transform of torch.func, no_grad would replace derivatives (of SiLU, say) by ones that have none.
    transformed = any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in tensors)
    record = transformed or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
    # Forward mode under vmap fails in inference mode in older torch (seen in 2.5 and 2.8).
    with torch.inference_mode(False), torch.set_grad_enabled(record), differentiable(tensors[0].device):
        flat = [x.clone() if x.is_inference() else x for x in flat]
        rows = n_rows(flat[0][:1])
        # Four chunks: a solver that takes a few points more than one at a time does not compute them twice.
        if recompute and record and not transformed and n > 4 * rows:
            again = partial(_differentiably, function, tensors[0].device)
            function = partial(checkpoint, again, use_reentrant=False, preserve_rng_state=False)
        results = (function(*chunk) for chunk in zip(*(x.split(rows) for x in flat), strict=True))
        first = next(results)
        single = isinstance(first, Tensor)
        parts = ((part,) if single else part for part in chain([first], results))
        if record:
            joined = [torch.cat(column)[:n] for column in zip(*parts, strict=True)]
        else:
            joined = [part.new_empty(n, *part.shape[1:]) for part in ((first,) if single else first)]
            # Written into place: kept one by one, small results would lie between the large temporary buffers of the
            # chunks and keep the allocator from using their memory again, which then grows with the number of points.
            stop = 0
            for part in parts:
                start, stop = stop, min(stop + rows, n)
                for whole, piece in zip(joined, part, strict=True):
                    whole[start:stop] = piece[: stop - start]
        shaped = [x.reshape(leading + x.shape[1:]) for x in joined]
    return shaped[0] if single else tuple(shaped)


def _differentiably(function: Callable[..., Any], device: torch.device, *chunk: Tensor) -> Any:
    # A reverse pass, which computes anew, comes when the caller's context is left.
    with differentiable(device):
        return function(*chunk)


def first_point(z: Tensor) -> Tensor:
    """First of points (..., d) as (1, d); zeros where there are none."""
    return z.reshape(-1, z.shape[-1])[:1] if z.shape[:-1].numel() else z.new_zeros(1, z.shape[-1])


def check_points(z: Tensor, d: int | None, name: str = "z") -> None:
    """Refuse what is not floating-point points (..., d); where the latent dimension is not known, any will do."""
    if not isinstance(z, Tensor) or not z.is_floating_point():
        how = f"{name}.float()" if isinstance(z, Tensor) else f"torch.as_tensor({name}, dtype=torch.float32)"
        raise ValueError(f"expected floating-point points {name} (..., {d or 'd'}), got {describe(z)}: use {how}")
    if z.ndim == 0 or z.shape[-1] != (d or z.shape[-1]):
        raise ValueError(f"expected points {name} (..., {d or 'd'}), got shape {tuple(z.shape)}")


def check_ends(start: Tensor, end: Tensor, d: int | None = None) -> None:
    """Refuse what are not end points (..., d) of one shape, dtype and device."""
    check_points(start, d, "start")
    check_points(end, d, "end")
    if (start.shape, start.dtype, start.device) != (end.shape, end.dtype, end.device):
        raise ValueError(
            f"expected end points (..., d) of one shape, dtype and device, got {describe(start)} and {describe(end)}: "
            "expand or convert one"
        )


def paired(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Points and vectors (..., d) with their leading dimensions broadcast."""
    if not (isinstance(z, Tensor) and isinstance(v, Tensor)) or z.dtype != v.dtype or z.device != v.device:
        raise ValueError(
            f"expected z and v as tensors of one dtype on one device, got {describe(z)} and {describe(v)}: use "
            "torch.as_tensor(v, dtype=..., device=...)"
        )
    if z.shape[-1:] != v.shape[-1:]:
        raise ValueError(f"expected z and v (..., d) with the same d, got {tuple(z.shape)} and {tuple(v.shape)}")
    try:
        z, v = torch.broadcast_tensors(z, v)
    except RuntimeError as error:
        raise ValueError(f"z {tuple(z.shape)} and v {tuple(v.shape)} cannot be broadcast: {error}") from error
    return z, v


def finite(result: Tensor, z: Tensor) -> Tensor:
    """Refuse a result (..., *) that is not finite, naming the first point (..., d) where it is not."""
    is_finite = result.detach().isfinite()
    if not bool(is_finite.all()):
        bad = ~is_finite.reshape(*z.shape[:-1], -1).all(-1).reshape(-1)
        point = z.detach().reshape(-1, z.shape[-1])[bad][0]
        cause = "z itself is not finite" if not bool(point.isfinite().all()) else "the generator gives NaN or infinity"
        raise NotFiniteError(
            f"no finite result at {int(bad.sum())} of {bad.numel()} points, first z = {point.tolist()}: {cause}"
        )
    return result


def eigh(M: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and -vectors of symmetric matrices (..., d, d), by LAPACK on the CPU wherever they are.

    On a GPU, cuSOLVER takes those larger than 32 x 32 one after the other, and gives up on some that LAPACK decomposes:
    on an H200, Hessians of curves through the class probabilities. LAPACK gives up on NaN, of which there is NaN.
    """
    known = M.isfinite().all(-1).all(-1)[..., None]
    values, vectors = (x.to(M.device) for x in torch.linalg.eigh(torch.where(known[..., None], M, 0).cpu()))
    return torch.where(known, values, torch.nan), torch.where(known[..., None], vectors, torch.nan)


def semidefinite(M: Tensor, z: Tensor) -> Tensor:
    """Refuse tensors (..., d, d) not finite or with a negative eigenvalue, naming the first such point (..., d)."""
    finite(M, z)
    # Cholesky's decomposition exists where all eigenvalues are positive, and costs less than the tensor did. Those that
    # ought to be 0 may be negative by rounding: down to -1000 eps trace(M) they pass, 1e-4 of the trace in float32 and
    # 2e-13 in float64. That is ample: a sum of D products is off by about sqrt(D) eps.
    precision = torch.finfo(z.dtype)
    tensor = M.detach().to(torch.promote_types(M.dtype, torch.float32))
    shift = 1e3 * precision.eps * tensor.diagonal(dim1=-2, dim2=-1).sum(-1).abs() + precision.tiny
    identity = torch.eye(M.shape[-1], dtype=tensor.dtype, device=M.device)
    bad = torch.linalg.cholesky_ex(tensor + shift[..., None, None] * identity).info > 0
    if bool(bad.any()):
        eigenvalue = float(torch.linalg.eigvalsh(tensor[bad][0])[0])
        raise ValueError(
            f"expected a positive semi-definite metric, got the eigenvalue {eigenvalue:.3g} at z = "
            f"{z.detach()[bad][0].tolist()}: correct the function or the factor that makes it negative"
        )
    return M
