"""Studies of Algorithm 1 as they are kept: a table with statistics, in files that survive a kill, on many machines.

A study is a table of samples, each with its number. Whatever holds some of them is a part: the file of a chunk, a
folder of such files, the file of :meth:`Study.save`, a study in memory. Reading and merging are one thing, putting
parts one below the other. What determines a study are its settings, which `lgi.algorithm1` makes; of these, this module
reads ``n_samples``, ``chunk_size`` (chunks begin at its multiples), ``latent_dim``, ``seed`` and ``fingerprint``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lgi import artifacts
from lgi.progress import progress_bar

Table: TypeAlias = dict[str, npt.NDArray[Any]]
"""Columns of one length."""

_ELSEWHERE = "Give another folder (on the command line, another --out)"
_REMEDY = "Move it away, or let the call that computes this study do so and compute its samples again."
_CHUNKS = "lgi_study_chunks"
# Raised by hand when the same settings give other samples or other results.
_VERSION = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """Samples of Algorithm 1 and what was measured on them; all tensors on the CPU.

    Attributes
    ----------
    index : Tensor of int64, shape (n,)
        Number of each sample; its random stream is that of (seed, number).
    start, end : Tensor, shape (n, d)
        End points of the straight line.
    straight_length, length : Tensor, shape (n,)
        Riemannian lengths of the straight line and of the shorter curve, in units of the generator's output.
    improvement : Tensor, shape (n,)
        ``(straight_length - length) / straight_length``, never negative; 0 where it is not defined, see ``defined``.
    converged : Tensor of bool, shape (n,)
        Whether the shorter curve is certified: ``residual`` within the tolerance of the solver.
    residual, refinement_gain, length_error : Tensor, shape (n,)
        Certificates, see :class:`lgi.solver.ShortenResult`.
    n_control : Tensor of int64, shape (n,)
        Control points of the shorter curve.
    n_rows : Tensor, shape (n,)
        Cost of the shorter curve in decoder rows.
    start_code, end_code : Tensor of int64, shape (n,), optional
        Rows of the given codes that the end points are; None where they are none.
    settings : dict
        Everything that determines the samples and the results, and ``about``, what the reader should know.
    """

    index: Tensor
    start: Tensor
    end: Tensor
    straight_length: Tensor
    length: Tensor
    improvement: Tensor
    converged: Tensor
    residual: Tensor
    refinement_gain: Tensor
    length_error: Tensor
    n_control: Tensor
    n_rows: Tensor
    start_code: Tensor | None = None
    end_code: Tensor | None = None
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def n_samples(self) -> int:
        """Number of samples that were asked for, of all shards together; a partial study holds fewer."""
        return int(self.settings["n_samples"])

    @property
    def complete(self) -> bool:
        """Whether all samples that were asked for are there."""
        return len(self) == self.n_samples

    @property
    def defined(self) -> Tensor:
        """Where an improvement is defined, bool (n,): the straight line has a length. Statistics are of these."""
        return self.straight_length > 0

    @property
    def certified(self) -> float:
        """Share of the samples whose curve has converged."""
        return float(self.converged.double().mean())

    @property
    def mean(self) -> float:
        """Expected worst-case relative improvement: the mean that Algorithm 1 returns."""
        return float(self._improvements.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the improvements over the samples (of one sample, 0)."""
        return float(self._improvements.std(ddof=min(1, len(self._improvements) - 1)))

    @property
    def quantiles(self) -> dict[float, float]:
        """Quantiles 0.05, 0.25, 0.5, 0.75 and 0.95 of the improvements."""
        levels = (0.05, 0.25, 0.5, 0.75, 0.95)
        return dict(zip(levels, np.quantile(self._improvements, levels).tolist(), strict=True))

    @cached_property
    def confidence_interval(self) -> tuple[float, float]:
        """95 % interval of the mean, see :func:`bootstrap_interval`."""
        return bootstrap_interval(self._improvements)

    @property
    def columns(self) -> Table:
        """The samples as one-dimensional arrays, coordinates as ``start_0``, ``start_1``, ...: ready for pandas."""
        table: dict[str, Tensor] = {}
        for name in _FIELDS:
            value = getattr(self, name)
            if name in ("start", "end"):
                table |= {f"{name}_{k}": column for k, column in enumerate(value.unbind(-1))}
            elif value is not None:
                table[name] = value
        return {name: np.ascontiguousarray(column.numpy()) for name, column in table.items()}

    def save(self, path: str | Path) -> None:
        """Write ``<path>.safetensors``, equal files for equal studies; :func:`load_study` reads it back.

        So does pandas: ``pandas.DataFrame(safetensors.numpy.load_file("study.safetensors"))`` is the table of
        ``columns``.

        Parameters
        ----------
        path : path
            Where, without suffix.

        Raises
        ------
        ValueError
            If another study is there, or more samples of this one.
        lgi.artifacts.ArtifactError
            If the file cannot be written, or what is there is no study, or a damaged one.
        """
        path = _without_suffix(path)
        if artifacts.exists(path):
            stored = load_study(path)
            _refuse_another(path, stored.settings, self.settings)
            if len(stored) > len(self):
                raise ValueError(f"{path} holds {len(stored)} samples of this study, more than these {len(self)}")
        record: dict[str, Any] = {
            "samples": len(self),
            "asked": self.n_samples,
            "undefined": int((~self.defined).sum()),
            "certified": self.certified,
            "decoder_rows_a_sample": float(self.n_rows.double().mean()),
        }
        if bool(self.defined.any()):
            record |= {
                "mean": self.mean,
                "std": self.std,
                "confidence_interval": self.confidence_interval,
                "quantiles": {str(level): value for level, value in self.quantiles.items()},
            }
        artifacts.save(path, self.columns, record, name="study", settings=self.settings, version=_VERSION)

    def __str__(self) -> str:
        done = f"{len(self)} of {self.n_samples} samples"
        if not bool(self.defined.any()):
            return f"{done}, none with an improvement: all straight lines have length 0"
        low, high = self.confidence_interval
        undefined = int((~self.defined).sum())
        return (
            f"mean relative improvement {self.mean:.2%} [{low:.2%}, {high:.2%}], standard deviation {self.std:.2%}, "
            f"{done}, {self.certified:.1%} certified"
            + (f", {undefined} left out: their straight lines have length 0" if undefined else "")
        )

    @property
    def _improvements(self) -> npt.NDArray[np.float64]:
        if not bool(self.defined.any()):
            raise ValueError(f"no statistics: the straight lines of all {len(self)} samples have length 0")
        values: npt.NDArray[np.float64] = self.improvement[self.defined].double().numpy()
        return values


Part: TypeAlias = tuple[str, dict[str, Any], Mapping[str, Any]]
"""Name, settings and columns of samples of a study."""

_FIELDS = tuple(field.name for field in dataclasses.fields(Study) if field.name != "settings")


def _put_together(parts: Sequence[Part]) -> Study:
    """Study of parts, each its name, its settings and its columns, in the order of the samples."""
    first, settings, columns = parts[0]
    for name, of_another, _ in parts[1:]:
        if found := _differences(settings, of_another):
            raise ValueError(f"{first} and {name} are of different studies: {'; '.join(found)}")
    table = {name: torch.cat([torch.as_tensor(part[name]) for _, _, part in parts]) for name in columns}
    index, order = table["index"].sort(stable=True)
    if bool((twice := index[1:] == index[:-1]).any()):
        names = " and ".join(name for name, _, part in parts if index[1:][twice][0] in torch.as_tensor(part["index"]))
        raise ValueError(f"{int(twice.sum())} samples are there twice, in {names}")
    if not 0 <= int(index[0]) <= int(index[-1]) < settings["n_samples"]:
        raise ValueError(f"expected samples 0 to {settings['n_samples'] - 1}, got {int(index[0])} to {int(index[-1])}")
    table = {name: column[order] for name, column in table.items()}
    for name in ("start", "end"):
        table[name] = torch.stack([table.pop(f"{name}_{k}") for k in range(settings["latent_dim"])], dim=-1)
    return Study(**table, settings=dict(settings))


def bootstrap_interval(x: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of ``x`` (n,): the percentiles of 2000 bootstrap samples, of a fixed seed.

    Of a single value, that value twice.
    """
    if len(x) == 1:
        return float(x[0]), float(x[0])
    from scipy.stats import bootstrap

    # In batches, because all resamples of 100,000 values at once take gigabytes.
    batch = max(1, (1 << 21) // len(x))
    result = bootstrap((x,), np.mean, n_resamples=2000, batch=batch, method="percentile", random_state=0)
    found = result.confidence_interval
    return float(found.low), float(found.high)


# --------------------------------------------------------------------------------------------------------------------
# Long runs
# --------------------------------------------------------------------------------------------------------------------


def chunks_of(settings: Mapping[str, Any], shard: tuple[int, int] = (1, 1)) -> range:
    """Numbers of the chunks of a study, or of a shard (i, n) of it: whole ones, so that a chunk is the same in both."""
    n_chunks = math.ceil(settings["n_samples"] / settings["chunk_size"])
    i, n = shard
    return range(n_chunks * (i - 1) // n, n_chunks * i // n)


def samples_of(number: int, settings: Mapping[str, Any]) -> range:
    """Numbers of the samples of a chunk."""
    size = settings["chunk_size"]
    return range(number * size, min((number + 1) * size, settings["n_samples"]))


def run(
    settings: dict[str, Any],
    compute: Callable[[Sequence[int]], Table],
    folder: Path | None,
    *,
    shard: tuple[int, int] = (1, 1),
    progress: bool | None,
) -> Study:
    """Compute a study chunk by chunk; with a folder, go on with what is there.

    The study is the files of its chunks, ``folder/lgi_study_chunks/000000.safetensors`` and so on, each with seconds
    and provenance in its header. Whenever this is killed, the same call goes on, and ends with the same samples. Shards
    may share a folder, whose samples are then those of all of them. Nothing is ever deleted: a damaged file, or one
    that holds other samples than its number says, is renamed and its samples are computed again. Before it goes on, one
    of the stored samples is computed again and compared.

    Parameters
    ----------
    settings : dict
        Everything that determines the study.
    compute : callable
        Takes numbers of samples and returns their table.
    folder : pathlib.Path, optional
        Where to keep the study; by default nowhere.
    shard : (int, int), optional
        Compute only the chunks of part i of n, counted from 1.
    progress : bool, optional
        Whether to show a progress bar; by default if the output is a terminal.

    Returns
    -------
    Study
        Of what the folder holds then; without one, of what was computed.

    Raises
    ------
    ValueError
        If the folder holds another study, or comes to hold one meanwhile, naming what differs.
    lgi.artifacts.ArtifactError
        If the folder cannot be written.

    Warns
    -----
    UserWarning
        If a file was damaged, naming it and what it is called now.
    """
    # As they come back from disk: tuples as lists, and in the order that makes equal studies equal files.
    settings = json.loads(json.dumps(settings, sort_keys=True))
    numbers = chunks_of(settings, shard)
    if folder is None:
        # Closed, so that the bar ends before a failure is told.
        with closing(_with_progress(numbers, settings, progress)) as shown:
            return _put_together([(f"chunk {n}", settings, compute(samples_of(n, settings))) for n in shown])
    held = _to_go_on_from(folder, settings)
    settings = held[0][1] if held else settings  # which may differ in rounding
    there = {i for _, _, table in held for i in table["index"].tolist()}
    missing = [number for number in numbers if not there.issuperset(samples_of(number, settings))]
    if not missing:
        return load_study(folder)
    artifacts.check_writable(folder, _ELSEWHERE)
    if held:
        _compare_one(folder, held[0][2], compute)
    provenance = artifacts.provenance(seed=settings["seed"])
    for number in _with_progress(numbers, settings, progress):
        path = folder / _CHUNKS / f"{number:06d}"
        # Another process may have computed it meanwhile, or another study may have begun here.
        if number in missing and not artifacts.exists(path):
            begin = time.perf_counter()
            samples = samples_of(number, settings)
            table = compute(samples)
            settings = _settings_to_go_on(settings, folder)
            artifacts.save(
                path,
                table,
                {"samples": [samples.start, samples.stop], "seconds": time.perf_counter() - begin},
                name="study chunk",
                settings=settings,
                version=_VERSION,
                provenance=provenance,
            )
    return load_study(folder)


def _with_progress(numbers: range, settings: Mapping[str, Any], show: bool | None) -> Generator[int, None, None]:
    """Numbers of chunks, with a progress bar over their samples."""
    sizes = {number: len(samples_of(number, settings)) for number in numbers}
    with progress_bar(sum(sizes.values()), desc="improvement", unit="samples", show=show) as advance:
        for number, size in sizes.items():
            yield number
            advance(size)


def _files(folder: Path) -> list[Path]:
    """Files, without suffix, in which the samples of a folder are: that of `Study.save` and those of the chunks."""
    chunks = (file.with_suffix("") for file in (folder / _CHUNKS).glob("*.safetensors"))
    numbered = sorted(file for file in chunks if re.fullmatch("[0-9]{6}|[1-9][0-9]{6,}", file.name))
    return [folder / "study", *numbered] if artifacts.exists(folder / "study") else numbered


def _part(file: Path) -> Part:
    """Name, settings and columns of a file, whose samples are those of its number if it is that of a chunk."""
    is_chunk = file.parent.name == _CHUNKS
    kept = artifacts.load(file, name="study chunk" if is_chunk else "study", version=_VERSION, remedy=_REMEDY)
    # Version 0.1 counted a shard as a study of its own. Which samples there are, their numbers tell.
    settings = {key: value for key, value in kept.settings.items() if key != "shard"}
    index = kept.tensors["index"].tolist()
    expected = samples_of(int(file.name), settings) if is_chunk else index
    if index != list(expected):
        raise artifacts.DamagedError(
            f"{file}.safetensors holds samples {index[0]} to {index[-1]}, by its number those from {expected[0]} on. "
            + _REMEDY
        )
    return str(file), settings, kept.tensors


def _to_go_on_from(folder: Path, settings: Mapping[str, Any]) -> list[Part]:
    """What a folder holds of this study; its damaged files are renamed, with a warning."""
    parts, damaged = [], []
    for file in _files(folder):
        try:
            parts.append(_part(file))
            _refuse_another(folder, parts[-1][1], settings)
        except artifacts.DamagedError as error:
            damaged.append((file.with_name(f"{file.name}.safetensors"), str(error).removesuffix(_REMEDY)))
    for file, said in damaged:
        aside = file.with_name(f"{file.name}.damaged-{time.time_ns()}")
        with suppress(FileNotFoundError):  # another process was faster
            file.rename(aside)
            warnings.warn(f"{said}It is called {aside.name} now, and its samples are computed again", stacklevel=4)
    return parts


def _compare_one(folder: Path, stored: Mapping[str, Tensor], compute: Callable[[Sequence[int]], Table]) -> None:
    """Compute the stored sample that lies farthest out once more: there, another metric is most likely to show."""
    place = [name for name in stored if re.fullmatch(r"(start|end)_\d+", name)]
    row = int(torch.stack([stored[name].double() for name in place]).norm(dim=0).argmax())
    sample = int(stored["index"][row])
    again = compute([sample])
    for name in (*place, "straight_length"):
        before, now = float(stored[name][row]), float(again[name][0])
        # Coordinates may be near 0; the scale of the prior is 1.
        if not abs(now - before) <= 1e-3 * max(abs(before), float(name in place)):
            raise ValueError(
                f"{folder} holds another study: {name} of sample {sample} is {before:.6g}, and {now:.6g} when it is "
                "computed again. Write elsewhere, or delete that study"
            )


def _settings_to_go_on(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings with which to go on in a folder: those in it, which may differ in rounding."""
    if not (files := _files(folder)):
        return settings
    stored = _part(files[0])[1]
    _refuse_another(folder, stored, settings)
    return stored


def _refuse_another(path: Path, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    if found := _differences(stored, settings):
        raise ValueError(f"{path} holds another study: {'; '.join(found)}. Write elsewhere, or delete that study")


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of two studies, rounding of the fingerprint on other machines apart."""
    found: list[str] = []
    for key in sorted(a.keys() | b.keys(), key=lambda key: (key == "fingerprint", key)):
        x: Any = a.get(key)
        y: Any = b.get(key)
        if key == "fingerprint":
            # Earlier versions took fewer; and of other settings the samples are elsewhere anyway.
            both = [name for name in x if name in y and not (found and name == "speeds where the samples are")]
            found += [f"{name} differ" for name in both if not _nearly_equal(x[name], y[name], *_ROUNDING[name])]
        elif key == "lgi" and None in (x, y):  # the package's version, which earlier ones did not keep
            continue
        elif isinstance(x, dict) and isinstance(y, dict):
            found += [f"{key}: {difference}" for difference in _differences(x, y)]
        elif x != y:
            found.append(f"{key} is {x!r}, not {y!r}")
    return found


# Relative differences that other machines and devices may make in the numbers of a fingerprint, each one and the median
# of all (a speed in a network of ReLUs may jump by rounding, half of them may not); and absolute ones.
_ROUNDING = {
    "speeds in the metric": (1e-3, 3e-5, 0.0),
    "speeds where the samples are": (1e-3, 3e-5, 0.0),
    "parameters of the metric": (1e-5, 1e-5, 0.0),
    "codes": (1e-5, 1e-5, 0.0),
    # In units of the norms, since sums may cancel.
    "order and signs of the codes": (0.0, 0.0, 1e-5),
    "weights of the metric, in order": (0.0, 0.0, 1e-5),
}


def _nearly_equal(x: Sequence[float], y: Sequence[float], each: float, median: float, absolute: float) -> bool:
    close = [abs(a - b) <= absolute + median * abs(b) for a, b in zip(x, y, strict=False)]
    return len(x) == len(y) and np.allclose(x, y, rtol=each, atol=absolute) and 2 * sum(close) >= len(x)


def load_study(path: str | Path) -> Study:
    """Read a study, or as much as there is of it.

    Parameters
    ----------
    path : path
        The folder of :func:`lgi.worst_case_improvement`, or the file of :meth:`Study.save`, with or without suffix.

    Returns
    -------
    Study
        Its attribute ``complete`` tells whether anything is missing.

    Raises
    ------
    ValueError
        If there is no study, or files of several.
    lgi.artifacts.ArtifactError
        If a file is damaged, or holds other samples than its number says.
    """
    path = Path(path)
    files = _files(path) if path.is_dir() else [_without_suffix(path)]
    if not files or not artifacts.exists(files[0]):
        raise ValueError(f"there is no study {'in ' * path.is_dir()}{path}")
    first, *chunks = [_part(file) for file in files]
    parts = [first]
    for name, settings, table in chunks:
        # Beside the file of Study.save lie the chunks that it was made of, and those that have come since.
        new = ~torch.isin(table["index"], first[2]["index"])
        parts.append((name, settings, {key: column[new] for key, column in table.items()}))
    return _put_together(parts)


def _without_suffix(path: str | Path) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix == ".safetensors" else path


def merge_studies(studies: Sequence[Study | str | Path], *, folder: str | Path | None = None) -> Study:
    """Put the parts of a study together.

    Parameters
    ----------
    studies : sequence of Study or path
        Its parts, such as the shards of several machines, in any order; paths as for :func:`load_study`.
    folder : path, optional
        Where to write the whole, as ``study.safetensors``. The same study may be there already.

    Returns
    -------
    Study
        The same as of one run without shards.

    Raises
    ------
    ValueError
        If samples are missing or there twice, or parts are of different studies: which ones; if the folder holds
        another study, naming what differs.
    lgi.artifacts.ArtifactError
        If a file is damaged, or the folder cannot be written.
    """
    if not studies:
        raise ValueError("expected the parts of a study, got none")
    named = [
        (f"study {k}", entry) if isinstance(entry, Study) else (str(entry), load_study(entry))
        for k, entry in enumerate(studies, 1)
    ]
    merged = _put_together([(name, study.settings, study.columns) for name, study in named])
    if not merged.complete:
        absent = ~torch.isin(torch.arange(merged.n_samples), merged.index)
        numbers = absent.nonzero()[:, 0].tolist()
        raise ValueError(f"{len(numbers)} of {merged.n_samples} samples are missing, the first is number {numbers[0]}")
    if folder is not None:
        _settings_to_go_on(merged.settings, Path(folder))
        merged.save(Path(folder) / "study")
    return merged
