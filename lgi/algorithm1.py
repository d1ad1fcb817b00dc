"""Algorithm 1: how far straight lines are from shortest, at worst (section 2.3, App. C).

From the command line, for long runs on one machine or many::

    python -m lgi.algorithm1 --model vae1 --samples 100000 --shard 3/20 --out vae1_study
    python -m lgi.algorithm1 merge vae1_study copied_from_another_machine --out vae1_study
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lgi import zoo
from lgi.artifacts import installed_version
from lgi.checks import NotFiniteError, describe, one_of, whole
from lgi.directions import eigenspace, largest_eigenvectors, towards_origin, unit
from lgi.features import ClassifierOutput
from lgi.fingerprints import fingerprint, parameters
from lgi.metric import Metric, PullbackMetric
from lgi.metric.base import check_metric
from lgi.models import pick_device
from lgi.progress import as_command, exit_status
from lgi.solver import SolverSettings, shorten
from lgi.solver.methods import chosen
from lgi.studies import Study, Table, UncertifiedWarning, chunks_of, joined, load_study, merge_studies, run

# Latent dimension above which products with the metric cost less than the whole of it.
_LARGE = 64
# Samples of a study at which its metric is compared with that of another call.
_PROBES = 256
# Length of the random part of the vector, otherwise -z, that Lanczos iterations begin with.
_RANDOM_SHARE = 1e-2

# What a study keeps of a search.
_MEASURED = (
    *("straight_length", "length", "improvement", "converged", "residual", "refinement_gain", "length_error"),
    *("n_control", "n_rows"),
)

Direction = Literal["maximal", "minimal", "random", "pairs"]
Eigenvectors = Literal["auto", "eigh", "lanczos"]
Prior: TypeAlias = Callable[[int], Tensor] | torch.distributions.Distribution
"""``n -> (n, d)``, or a distribution of points or of each coordinate; draws from torch's global generator."""


# --------------------------------------------------------------------------------------------------------------------
# Algorithm 1
# --------------------------------------------------------------------------------------------------------------------


def worst_case_improvement(
    metric: Metric,
    n_samples: int = 1000,
    step_size: float = 1.0,
    seed: int = 0,
    *,
    direction: Direction = "maximal",
    codes: Tensor | None = None,
    prior: Prior | None = None,
    settings: SolverSettings = SolverSettings(),  # noqa: B008 - it is frozen
    eigenvectors: Eigenvectors = "auto",
    latent_dim: int | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    folder: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    chunk_size: int = 500,
    about: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Study:
    """Expected worst-case relative improvement of straight lines (Algorithm 1, section 2.3).

    Draws ``z_A`` from the prior N(0, I), steps to ``z_B = z_A + step_size * v`` along the unit eigenvector ``v`` of
    ``M(z_A)`` with the largest eigenvalue, looks for a shorter curve between them, and averages
    ``(d_s - d_c) / d_s`` of the straight length ``d_s`` and the shorter length ``d_c``.

    Parameters
    ----------
    metric : Metric
    n_samples : int
        Number of samples; the paper's is 1000.
    step_size : float
        Euclidean length of the straight line in latent space; the paper gives no number, its public code 1.
    seed : int
        Sample ``i`` is drawn from a stream of its own, of (seed, i): the same whatever is drawn beside it.
    direction : {"maximal", "minimal", "random", "pairs"}
        Where the step goes: along the eigenvector of the largest (the paper's) or of the smallest eigenvalue, or in a
        random direction. ``"pairs"``: no step, the end is drawn from the codes like the start.
    codes : Tensor, shape (n_codes, d), optional
        Codes of data from which the starts are drawn, with replacement, in place of the prior.
    prior : torch.distributions.Distribution or callable, optional
        Where the starts are drawn from; by default N(0, I). A distribution of vectors (d,), of numbers (each coordinate
        is one), or a function ``n -> (n, d)`` that draws from torch's global generator, say
        ``lambda n: torch.nn.functional.normalize(torch.randn(n, d), dim=-1)``. It is asked for one point at a time,
        with a seed of (seed, i).
    settings : SolverSettings
        Of the search for shorter curves.
    eigenvectors : {"auto", "eigh", "lanczos"}
        ``"eigh"`` decomposes the whole tensor, ``"lanczos"`` needs its products with vectors only and gives maximal
        directions only. ``"auto"``: Lanczos for maximal directions if ``d > 64``.
    latent_dim : int, optional
        ``d``; by default that of the codes or of the metric.
    dtype, device : optional
        Where to compute; by default like the parameters of the metric's generator; of a plain function, like the codes,
        else torch's default dtype, on the CPU.
    folder : path, optional
        Where to keep a long run: every chunk is written when it is done, into a file of its own, and the same call goes
        on from there after an interruption of any kind. :func:`load_study` reads the folder.
    shard : (int, int), optional
        ``(i, n)``: compute only part ``i`` of ``n``, counted from 1. Shards may share a folder; what they have written
        into several, :func:`merge_studies` puts together.
    chunk_size : int
        Samples in a file. Where they take long, they are computed and written in pieces of about ten seconds.
    about : mapping, optional
        What a reader of the saved study should know, such as the name of the model; JSON values.
    progress : bool, optional
        Whether to show a progress bar; by default if the output is a terminal.

    Returns
    -------
    Study
        Of all samples, or of the shard's; with a folder, of all that it then holds.

    Raises
    ------
    ValueError
        If an argument makes no sense; if the metric is finite nowhere; if the folder holds another study, naming what
        differs.
    TypeError
        If ``metric`` is not a metric.
    lgi.artifacts.ArtifactError
        If the folder cannot be written, or a file in it cannot be read.

    Warns
    -----
    UserWarning
        If Lanczos iterations end before the eigenvector is exact; if a file in the folder was damaged, which is renamed
        and its samples computed again.
    lgi.studies.UncertifiedWarning
        If fewer than 95 % of the curves are certified.

    Notes
    -----
    Footnote 1 of the paper turns the eigenvector towards the origin: of ``v`` and ``-v``, the one with ``v . z_A < 0``.
    Here that is the normalised projection of ``-z_A`` onto the eigenspace, which is the same where the eigenvalue is
    simple and does not depend on the basis that LAPACK returns where it is not. (Lanczos iterations find it to about a
    hundredth, the share of a random vector in what they start from besides ``-z_A``.) Where ``z_A`` is perpendicular
    to the eigenspace, the first coordinate axis that is not nearly so takes the place of ``-z_A``. Random directions,
    uniform on the sphere, are turned towards the origin too.

    Chunks begin at multiples of ``chunk_size`` and a shard consists of whole chunks. How many samples are computed at a
    time is measured once and kept with the study, so that results are the same to the last bit after a resumption; and
    from shards, where a chunk takes less than ten seconds. Other numbers at a time, chunk sizes and devices change
    rounding only. (Except with ``starts="multi"``, whose bent curves are drawn by the place of a pair in its chunk.)
    Memory beside the columns of the result does not grow with their number.

    A straight line of length 0 has no improvement, nor has one on which the metric is not finite: such samples are
    kept, marked by :attr:`Study.defined`, and left out of the statistics.

    References
    ----------
    Michelis & Becker (2021), section 2.3 and App. C. Golub & Van Loan, Matrix Computations (2013), section 10.1 for
    Lanczos iterations with full reorthogonalisation.
    """
    study_settings: dict[str, Any] = {
        "n_samples": n_samples,
        "seed": seed,
        "direction": direction,
        "step_size": step_size,
        "starts": "codes" if codes is not None else "prior" if prior is None else "own prior",
        "eigenvectors": eigenvectors,
        "metric": type(metric).__name__,
        # How many curves are worked on at a time changes rounding at most, and the bar nothing.
        "solver": {k: v for k, v in vars(settings).items() if k not in ("chunk_size", "progress")},
        "chunk_size": chunk_size,
        "about": dict(about or {}),
        "lgi": installed_version(),
    }
    _settle(study_settings, metric, codes, latent_dim)
    if codes is not None and prior is not None:
        raise ValueError("starts come from codes or from a prior: give one of them")
    like = next((x for x in parameters(metric) if x.is_floating_point()), codes)
    # Tensors made in inference mode cannot be differentiated; copies of them can.
    with torch.inference_mode(False):
        sampler = _Sampler(
            metric=metric,
            codes=None if codes is None else codes.detach().to("cpu", torch.float64, copy=True),
            prior=prior,
            study_settings=study_settings,
            solver=dataclasses.replace(settings, progress=False),
            dtype=dtype or (torch.get_default_dtype() if like is None else like.dtype),
            device=pick_device(device or ("cpu" if like is None else like.device)),
        )
        study_settings["dtype"] = str(sampler.dtype).removeprefix("torch.")
        try:
            study_settings["fingerprint"] = sampler.fingerprint()
        except ValueError as error:
            chosen = f"dtype={sampler.dtype} and device={str(sampler.device)!r}"
            raise ValueError(f"with {chosen} (give others if the metric needs them): {error}") from error
        study = run(
            study_settings,
            sampler.table,
            None if folder is None else Path(folder),
            shard=_checked_shard((1, 1) if shard is None else shard, len(chunks_of(study_settings))),
            parallel=sampler.device.type != "cpu",
            progress=progress,
        )
    if study.warning:
        warnings.warn(study.warning, UncertifiedWarning, stacklevel=2)
    return study


def _settle(settings: dict[str, Any], metric: Metric, codes: Tensor | None, latent_dim: int | None) -> None:
    """Check the settings of a study, and settle in them what they leave open."""
    check_metric(metric)
    for name, least in (("n_samples", 1), ("seed", 0), ("chunk_size", 1)):
        whole(least, **{name: settings[name]})
        settings[name] = int(settings[name])
    step_size, direction = settings["step_size"], settings["direction"]
    if not isinstance(step_size, int | float | np.number) or not 0 < step_size < math.inf:
        raise ValueError(f"expected a positive step_size, got {step_size!r}")
    one_of(get_args(Direction), direction=direction)
    one_of(get_args(Eigenvectors), eigenvectors=settings["eigenvectors"])
    if settings["solver"]["starts"] == "graph":
        raise ValueError('starts="graph" needs points, which only lgi.shorten takes: use "multi" or "line"')
    try:
        json.dumps(settings["about"], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected about to be made of finite numbers, strings, lists, mappings: {error}") from error
    if any(x.is_inference() for x in parameters(metric)):
        raise ValueError("the metric's model was made in torch.inference_mode and has no derivatives: make it outside")
    _check_codes(codes, direction)
    settings["latent_dim"] = d = _one_latent_dim(metric, codes, latent_dim)
    settings["solver"]["method"] = chosen(settings["solver"]["method"], d)
    if settings["eigenvectors"] == "lanczos" and direction == "minimal":
        raise ValueError('Lanczos iterations find maximal eigenvectors only: use eigenvectors="eigh"')
    if settings["eigenvectors"] == "auto":
        settings["eigenvectors"] = "lanczos" if d > _LARGE and direction == "maximal" else "eigh"
    if direction not in ("maximal", "minimal"):
        settings["eigenvectors"] = None
    settings["step_size"] = None if direction == "pairs" else float(step_size)


def _check_codes(codes: Tensor | None, direction: Direction) -> None:
    if codes is None:
        if direction == "pairs":
            raise ValueError('direction="pairs" draws both ends from codes: give codes (n_codes, d)')
        return
    if not isinstance(codes, Tensor) or codes.ndim != 2 or len(codes) == 0 or not codes.is_floating_point():
        raise ValueError(f"expected floating-point codes (n_codes, d), got {describe(codes)}")
    if not bool(codes.isfinite().all()):
        raise ValueError(f"{int((~codes.isfinite()).any(-1).sum())} of {len(codes)} codes are NaN or infinite")
    if direction == "pairs" and bool((codes == codes[0]).all()):
        raise ValueError(f"no pairs of different points: all {len(codes)} codes are {codes[0].tolist()}")


def _one_latent_dim(metric: Metric, codes: Tensor | None, latent_dim: int | None) -> int:
    of_codes = None if codes is None else codes.shape[-1]
    told = {"latent_dim": latent_dim, "metric.latent_dim": metric.latent_dim, "codes.shape[-1]": of_codes}
    known = {name: d for name, d in told.items() if d is not None}
    if not known:
        raise ValueError("the metric does not know its latent dimension: give latent_dim")
    if len(set(known.values())) > 1:
        raise ValueError(f"expected one latent dimension, got {', '.join(f'{k} = {d}' for k, d in known.items())}")
    return next(iter(known.values()))


def _checked_shard(shard: Any, n_chunks: int) -> tuple[int, int]:
    try:
        i, n = map(operator.index, shard)
        if not 1 <= i <= n:
            raise ValueError("no part")
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected shard = (i, n), integers 1 <= i <= n, counted from 1, got {shard!r}") from error
    if n > n_chunks:
        raise ValueError(f"{n} shards of {n_chunks} chunks of samples: use fewer shards or a smaller chunk_size")
    return i, n


@dataclass(frozen=True, kw_only=True)
class _Sampler:
    """Draws the samples of a study and measures them."""

    metric: Metric
    codes: Tensor | None  # float64, CPU
    prior: Prior | None
    study_settings: dict[str, Any]
    solver: SolverSettings
    dtype: torch.dtype
    device: torch.device

    def fingerprint(self) -> dict[str, list[float]]:
        """Numbers that tell metrics and codes apart; on other machines they differ in rounding."""
        start = self.draw(range(4), seed=0)[0]
        if not torch.equal(start, self.draw(range(4), seed=0)[0]):
            raise ValueError(
                "the prior gives other points when it is asked again: let it draw from torch's global generator, whose "
                "seed is set for each sample (torch.randn, torch.rand, a torch distribution)"
            )
        towards = torch.from_numpy(np.random.default_rng(0).standard_normal(start.shape))
        # Where the study's own samples are, a metric that is another one only here or there shows.
        n, seed = self.study_settings["n_samples"], self.study_settings["seed"]
        own = self.draw(np.linspace(0, n - 1, min(n, _PROBES)).astype(int).tolist(), seed)[:2]
        at = [(self.place(z), self.place(v)) for z, v in ((start, towards), own)]
        return fingerprint(self.metric, *at, codes=self.codes)

    def place(self, z: Tensor) -> Tensor:
        """Points as the metric wants them."""
        return z.to(self.dtype).to(self.device)

    def draw(self, samples: Iterable[int], seed: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Starts, random vectors (both (n, d), float64, CPU) and rows of the codes, each sample from its own stream."""
        codes, d, pairs = self.codes, self.study_settings["latent_dim"], self.study_settings["direction"] == "pairs"
        names = ("start_code", "end_code")[: 0 if codes is None else 1 + pairs]
        starts, vectors, rows = [], [], []
        for i in samples:
            # Not (seed, i) as entropy: from that, lgi.shorten draws the bent curves of starts="multi".
            stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,)))
            if self.prior is not None:
                starts.append(self._from_prior(int(stream.integers(2**63))))
            elif codes is None:
                starts.append(stream.standard_normal(d))
            else:
                row = stream.integers(len(codes), size=len(names))
                while len(row) == 2 and torch.equal(*codes[row]):
                    row = stream.integers(len(codes), size=2)
                starts.append(codes[row[0]].numpy())
                rows.append(row)
            vectors.append(stream.standard_normal(d))
        columns = dict(zip(names, torch.from_numpy(np.array(rows, dtype=np.int64)).unbind(-1), strict=True))
        return torch.from_numpy(np.array(starts)), torch.from_numpy(np.array(vectors)), columns

    def _from_prior(self, seed: int) -> npt.NDArray[np.float64]:
        """One start (d,) from the prior that was given."""
        d = self.study_settings["latent_dim"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(self.prior, torch.distributions.Distribution):
                z = self.prior.sample((1,) if self.prior.batch_shape + self.prior.event_shape else (1, d))
            else:
                assert self.prior is not None
                z = self.prior(1)
        if not isinstance(z, Tensor) or z.shape != (1, d) or not bool(z.isfinite().all()):
            raise ValueError(f"expected finite points of the prior, a tensor (1, {d}) for n = 1, got {describe(z)}")
        return z[0].double().cpu().numpy()

    def directions(self, z: Tensor, vectors: Tensor) -> Tensor:
        """Unit vectors (n, d), float64 on the CPU, along which to step from points ``z`` (n, d)."""
        if self.study_settings["direction"] == "random":
            space = vectors[..., None]
        elif self.study_settings["eigenvectors"] == "lanczos":
            # A random share, because -z alone may be perpendicular to what is looked for.
            first = unit(vectors) * _RANDOM_SHARE - unit(z.cpu().double())
            space = largest_eigenvectors(self.metric, z, first.to(self.device))[..., None]
        else:
            space = eigenspace(self.metric, z, largest=self.study_settings["direction"] == "maximal")
        return towards_origin(space.cpu().double(), z.cpu().double())

    def table(self, samples: Sequence[int], end: Tensor | None = None) -> Table:
        """Table of some samples of one chunk; where the metric is not finite, without what is then unknown.

        With ``end`` (n, d), of the lines that lead there.
        """
        try:
            return self._searched(samples, self.solver, end)
        except NotFiniteError:
            # Which samples it is for, halving finds out; the others come out the same.
            half = len(samples) // 2
            return joined([self.table(samples[:half]), self.table(samples[half:])]) if half else self._lost(samples)
        except ValueError as error:
            raise ValueError(f"samples {samples[0]} to {samples[-1]}: {error}") from error

    def _ends(self, samples: Sequence[int]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Ends of the straight lines (n, d), and rows of the codes."""
        drawn, vectors, rows = self.draw(samples, self.study_settings["seed"])
        start = self.place(drawn)
        if self.codes is not None and "end_code" in rows:
            return start, self.place(self.codes[rows["end_code"]]), rows
        with torch.no_grad():
            step = self.study_settings["step_size"] * self.directions(start, vectors)
        return start, self.place(start.cpu().double() + step), rows

    def _searched(self, samples: Sequence[int], solver: SolverSettings, end: Tensor | None = None) -> Table:
        start, drawn, rows = self._ends(samples)
        end = drawn if end is None else self.place(end)
        result = shorten(self.metric, start, end, solver, first_pair=samples[0] % self.study_settings["chunk_size"])
        return self._columns(samples, start, end, rows, {name: getattr(result, name).cpu() for name in _MEASURED})

    def _lost(self, samples: Sequence[int]) -> Table:
        """Table of one sample with a curve on which the metric is not finite, or with such a start."""
        # That may be a bent curve, or one that the search has come to; on the straight line, nothing is known.
        for fewer in ({"starts": "line"}, {"starts": "line", "n_iterations": 0}):
            with suppress(NotFiniteError):
                return self._searched(samples, dataclasses.replace(self.solver, **fewer))
        try:
            start, end, rows = self._ends(samples)
        except NotFiniteError:
            drawn, _, rows = self.draw(samples, self.study_settings["seed"])
            start, end = self.place(drawn), torch.full_like(self.place(drawn), torch.nan)
        unknown, no = start.cpu().new_full((1,), torch.nan), start.cpu().new_zeros(1)
        known = {"improvement": no, "converged": no.bool(), "n_control": no.long(), "n_rows": no}
        return self._columns(samples, start, end, rows, dict.fromkeys(_MEASURED, unknown) | known)

    def _columns(
        self, samples: Sequence[int], start: Tensor, end: Tensor, rows: dict[str, Tensor], measured: dict[str, Tensor]
    ) -> Table:
        known = {"index": torch.tensor(samples), "start": start.cpu(), "end": end.cpu()} | measured | rows
        return Study(**known, settings=self.study_settings).columns


# --------------------------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------------------------


def _shard(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split("/")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected I/N, such as 3/20, got {text!r}") from error


def _parse(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    program = "python -m lgi.algorithm1"
    if argv[:1] == ["merge"]:
        parser = argparse.ArgumentParser(f"{program} merge", description="Put the parts of a study together.")
        parser.add_argument("parts", nargs="+", type=Path, metavar="PART", help="folder or file with samples")
        parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for study.safetensors")
        return parser, parser.parse_args(argv[1:])
    parser = argparse.ArgumentParser(
        program,
        description="Algorithm 1 on a shipped model. The same command goes on after an interruption.",
        epilog=f"What several machines have computed is put together by: {program} merge FOLDER ... --out FOLDER",
    )
    defaults = "; by default %(default)s"
    add = parser.add_argument
    add("--model", required=True, type=zoo.variant, metavar="MODEL", help="vae1, vae2, gan, published-t3-k8-c0.6, ...")
    add("--out", type=Path, required=True, metavar="FOLDER", help="for the samples; shards may share it")
    add("--samples", type=int, default=1000, metavar="N", help="samples of all shards together" + defaults)
    add("--step-size", type=float, default=1.0, metavar="ALPHA", help="length of the straight lines" + defaults)
    add("--seed", type=int, default=0, help="of the samples" + defaults)
    add("--direction", choices=get_args(Direction), default="maximal", help="pairs: of test digits' codes" + defaults)
    add("--std", choices=("rbf", "constant"), help="variance model of a VAE; by default rbf")
    add("--feature-map", choices=get_args(ClassifierOutput), help="output of the logistic regression; by default none")
    add("--n-control", type=int, default=SolverSettings.n_control, metavar="N", help="most control points" + defaults)
    add("--shard", type=_shard, metavar="I/N", help="compute part I of N")
    add("--chunk-size", type=int, default=500, metavar="N", help="samples in a file" + defaults)
    add("--device", default="auto", help="auto, cpu, cuda, ..." + defaults)
    add("--quiet", action="store_true", help="no progress bar, no summary")
    return parser, parser.parse_args(argv)


def _study(args: argparse.Namespace) -> Study:
    """The study of a command line."""
    device = pick_device(args.device)
    name, options = args.model
    options |= {} if args.std is None else {"std": args.std}
    model: Any = zoo.load_model(name, device, **options)
    about = {"model": name, "std": None if name == "gan" else "rbf", "feature_map": args.feature_map, **options}
    feature_map = args.feature_map and zoo.load_model("logistic_regression", device, output=args.feature_map)
    return worst_case_improvement(
        PullbackMetric(model.generator if name == "gan" else model.decoder, feature_map),
        args.samples,
        args.step_size,
        args.seed,
        direction=args.direction,
        codes=zoo.load_codes(name, seed=options.get("seed")).z if args.direction == "pairs" else None,
        settings=SolverSettings(n_control=args.n_control),
        device=device,
        folder=args.out,
        shard=args.shard,
        chunk_size=args.chunk_size,
        about=about,
        progress=False if args.quiet else None,
    )


@as_command()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        Exit status: 0 done; 2 refused, with the reason on stderr; 130 interrupted, 143 terminated.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser, args = _parse(argv)
    merging = "parts" in args
    try:
        with warnings.catch_warnings():
            # The summary says it.
            warnings.simplefilter("ignore", UncertifiedWarning)
            study = merge_studies(args.parts, folder=args.out) if merging else _study(args)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt as stop:
        done = 0
        with suppress(ValueError):
            done = len(load_study(args.out))
        said = f"interrupted with {done} samples in {args.out}: the same command goes on from there"
        parser.exit(exit_status(stop), f"\n{said}\n")
    if merging or not args.quiet:
        sys.stdout.write(f"{study}\nwritten to {args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
