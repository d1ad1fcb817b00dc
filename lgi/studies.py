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
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lgi import artifacts
from lgi.fingerprints import differences, one_computed_again
from lgi.progress import progress_bar
from lgi.statistics import bootstrap_interval, doubt

Table: TypeAlias = dict[str, npt.NDArray[Any]]
"""Columns of one length."""

_ELSEWHERE = "Give another folder (on the command line, another --out)"
_REMEDY = "Move it away, or let the call that computes this study do so and compute its samples again."
_CHUNKS = "lgi_study_chunks"
# Raised by hand when the same settings give other samples or other results.
_VERSION = 2
# Seconds between two writes of a long study: a third of what they may be, because samples take unequally long. And
# seconds of samples that are computed only to learn how long they take.
_SECONDS, _LEARNT = 10.0, 0.3
# Samples that a GPU is asked for at once to learn that.
_SOME = 32


class UncertifiedWarning(UserWarning):
    """So few of the curves that a mean is made of are certified that it may be another one."""


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
        Lengths are NaN where the metric is not finite along the straight line; where it is not even at its start, there
        is no direction, and ``end`` is NaN too.
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
        """Share of the samples with an improvement whose curve has converged; NaN without such samples."""
        return float(self.converged[self.defined].double().mean())

    @property
    def mean(self) -> float:
        """Expected worst-case relative improvement: the mean that Algorithm 1 returns."""
        return float(self._improvements.mean())

    @property
    def mean_certified(self) -> float:
        """The mean over the samples whose curve has converged alone; NaN if there are none."""
        return float(self.improvement[self.defined & self.converged].double().mean())

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
        return bootstrap_interval(self._improvements, least=0, most=1)

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
            Where; ``.safetensors`` is appended where it is missing.

        Raises
        ------
        ValueError
            If another study is there, or more samples of this one.
        lgi.artifacts.ArtifactError
            If the file cannot be written, or what is there is no study, or a damaged one.
        """
        if artifacts.exists(path):
            stored = load_study(path)
            _refuse(path, differences(stored.settings, self.settings))
            if len(stored) > len(self):
                raise ValueError(f"{path} holds {len(stored)} samples of this study, more than these {len(self)}")
        artifacts.save(path, self.columns, self.record, name="study", settings=self.settings, version=_VERSION)

    @property
    def record(self) -> dict[str, Any]:
        """How many samples there are, and the statistics of their improvements, as plain numbers."""
        record: dict[str, Any] = {
            "samples": len(self),
            "asked": self.n_samples,
            "undefined": int((~self.defined).sum()),
            "not_finite": int(self.straight_length.isnan().sum()),
            "decoder_rows_a_sample": float(self.n_rows.double().mean()),
        }
        if bool(self.defined.any()):
            record |= {
                "certified": self.certified,
                "mean": self.mean,
                "mean_certified": self.mean_certified if self.certified else None,
                "std": self.std,
                "confidence_interval": self.confidence_interval,
                "quantiles": {str(level): value for level, value in self.quantiles.items()},
            }
        return record

    def __str__(self) -> str:
        done = f"{len(self)} of {self.n_samples} samples"
        if not bool(self.defined.any()):
            return f"{done}, none with an improvement{self._left_out}"
        low, high = self.confidence_interval
        certified = f"{self.mean_certified:.2%} over the {self.certified:.1%} that are certified"
        return (
            f"mean relative improvement {self.mean:.2%} [{low:.2%}, {high:.2%}], "
            f"{certified if self.certified else 'none certified'}, standard deviation {self.std:.2%}, "
            f"{done}{self._left_out}{'; warning: ' * bool(self.warning)}{self.warning}"
        )

    @property
    def warning(self) -> str:
        """What to beware of where fewer than 95 % are certified, and what to do; else empty."""
        return doubt(self.certified, self.mean, self.mean_certified) if bool(self.defined.any()) else ""

    @property
    def _left_out(self) -> str:
        """How many samples are in no statistic, and why."""
        lost = int(self.straight_length.isnan().sum())
        reasons = {"have length 0": int((~self.defined).sum()) - lost, "lead to where the metric is not finite": lost}
        return "".join(f", {n} left out: their straight lines {reason}" for reason, n in reasons.items() if n)

    @property
    def _improvements(self) -> npt.NDArray[np.float64]:
        if not bool(self.defined.any()):
            raise ValueError(f"no statistics of {len(self)} samples{self._left_out}")
        values: npt.NDArray[np.float64] = self.improvement[self.defined].double().numpy()
        return values


Part: TypeAlias = tuple[str, dict[str, Any], Mapping[str, Any]]
"""Name, settings and columns of samples of a study."""

_FIELDS = tuple(field.name for field in dataclasses.fields(Study) if field.name != "settings")


def _put_together(parts: Sequence[Part]) -> Study:
    """Study of parts, each its name, its settings and its columns, in the order of the samples."""
    first, settings, columns = parts[0]
    for name, of_another, _ in parts[1:]:
        if found := differences(settings, of_another):
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
    compute: Callable[..., Table],
    folder: Path | None,
    *,
    shard: tuple[int, int] = (1, 1),
    parallel: bool = False,
    progress: bool | None,
) -> Study:
    """Compute a study chunk by chunk; with a folder, go on with what is there.

    The study is the files of its chunks, ``folder/lgi_study_chunks/000000.safetensors`` and so on, each with seconds
    and provenance in its header. A chunk that takes long is computed and written in pieces of about ten seconds: its
    file then holds its first samples, and is replaced when there are more. Because the last bit of a result may depend
    on what it is computed with, the size of the pieces is measured once and kept in the headers. Whenever this is
    killed, the same call goes on, and ends with the same samples. Shards may share a folder, whose samples are then
    those of all of them. No sample is ever deleted: a damaged file, or one that holds other samples than its number
    says, is renamed and its samples are computed again. Before it goes on, the line of one of the stored samples is
    measured again and compared.

    Parameters
    ----------
    settings : dict
        Everything that determines the study.
    compute : callable
        Takes the numbers of some samples of a chunk and returns their table; with ends (n, d) after them, that of the
        lines that lead there.
    folder : pathlib.Path, optional
        Where to keep the study; by default nowhere.
    shard : (int, int), optional
        Compute only the chunks of part i of n, counted from 1.
    parallel : bool
        Whether a few samples take as long as one, as on a GPU.
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
        table = _computed(settings, compute, numbers, parallel=parallel, progress=progress)
        return _put_together([("what was computed", settings, table)])
    held = _to_go_on_from(folder, settings)
    settings = held[0][1] if held else settings  # which may differ in rounding
    there = {i for _, _, table in held for i in table["index"].tolist()}
    if not all(there.issuperset(samples_of(number, settings)) for number in numbers):
        artifacts.check_writable(folder, _ELSEWHERE)
        if held:
            # A part with a sample whose line has a length, where there is one.
            known = max((part[2] for part in held), key=lambda table: bool(table["straight_length"].isfinite().any()))
            _refuse(folder, one_computed_again(known, compute))
        _computed(settings, compute, numbers, parallel=parallel, progress=progress, folder=folder, there=there)
    found = load_study(folder)
    _refuse(folder, differences(found.settings, settings))
    return found


def _computed(
    settings: dict[str, Any],
    compute: Callable[[Sequence[int]], Table],
    numbers: range,
    *,
    parallel: bool,
    progress: bool | None,
    folder: Path | None = None,
    there: Collection[int] = (),
) -> Table:
    """Table of chunks, computed and with a folder written piece by piece, from where their files end.

    Chunks whose samples are all there are left out.
    """
    chunks = [] if folder is None else [file for file in _files(folder) if file.parent.name == _CHUNKS]
    tables, usual = [], _kept(chunks[0])[2] if chunks else None  # the size of the pieces of what is there
    provenance = None if folder is None else artifacts.provenance(seed=settings["seed"])
    n_samples = sum(len(samples_of(number, settings)) for number in numbers)
    # A failure ends the bar before it is told.
    with progress_bar(n_samples, desc="improvement", unit="samples", show=progress) as advance:
        for number in numbers:
            samples, file = samples_of(number, settings), folder and folder / _CHUNKS / f"{number:06d}"
            if all(i in there for i in samples):
                advance(len(samples))
                continue
            table, seconds, piece = _kept(file)
            advance(_n_rows(table))
            while (done := _n_rows(table)) < len(samples):
                if parallel and folder is None:  # where nothing is kept, pieces would only cost time
                    usual = len(samples)
                usual = usual or piece or _measured_piece(compute, samples, parallel=parallel)
                piece = piece or usual
                begin = time.perf_counter()
                table = joined([table, compute(samples[done : done + piece])])
                seconds += time.perf_counter() - begin
                if folder is not None and file is not None:
                    # Once more: another study may have begun here meanwhile, or another run of this one be further.
                    settings = _settings_to_go_on(settings, folder)
                    theirs = _kept(file)
                    if _n_rows(theirs[0]) >= _n_rows(table):
                        table, seconds, piece = theirs
                    else:
                        held = [samples.start, samples.start + _n_rows(table)]
                        record = {"samples": held, "seconds": seconds, "piece": piece}
                        written: Any = {"name": "study chunk", "settings": settings, "version": _VERSION}
                        artifacts.save(file, table, record, **written, provenance=provenance)
                advance(_n_rows(table) - done)
            tables.append(table)
    return joined(tables) if tables else {}


def _measured_piece(compute: Callable[[Sequence[int]], Table], samples: range, *, parallel: bool) -> int:
    """Samples to compute at a time: all of a chunk, or a fourth, a sixteenth, ... for about ten seconds.

    Rough steps, so that the same study comes to the same number again. In ``parallel``, what counts is how much longer
    some take than one: that one pays for the start of a GPU, and for a search that must be made for any number.
    """

    def measured(n: int) -> float:
        begin = time.perf_counter()
        compute(samples[:n])
        return time.perf_counter() - begin

    n, size, alone = 1, len(samples), 0.0
    if parallel:
        n, alone = min(_SOME, size), measured(1)
    while True:
        seconds = max(0.0, measured(n) - alone)
        if seconds > _LEARNT or seconds * size <= _SECONDS * n or n == size:
            break
        n = min(8 * n, size)
    while size > 1 and seconds * size > _SECONDS * n:
        size = math.ceil(size / 4)
    return size


def _kept(file: Path | None) -> tuple[Table, float, int]:
    """Samples in the file of a chunk, none if there is none, the seconds that they took, and the size of its pieces."""
    if file is None or not artifacts.exists(file):
        return {}, 0.0, 0
    kept = _loaded(file)
    table = {name: column.numpy() for name, column in kept.tensors.items()}
    # Before, chunks were computed as a whole.
    return table, kept.record["seconds"], kept.record.get("piece", kept.settings["chunk_size"])


def _n_rows(table: Table) -> int:
    return len(table["index"]) if table else 0


def joined(tables: Sequence[Table]) -> Table:
    """Tables one below the other."""
    tables = [table for table in tables if table]
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def _files(folder: Path) -> list[Path]:
    """Files, without suffix, in which the samples of a folder are: that of `Study.save` and those of the chunks."""
    chunks = (file.with_suffix("") for file in (folder / _CHUNKS).glob("*.safetensors"))
    numbered = sorted(file for file in chunks if re.fullmatch("[0-9]{6}|[1-9][0-9]{6,}", file.name))
    return [folder / "study", *numbered] if artifacts.exists(folder / "study") else numbered


def _loaded(file: Path) -> artifacts.Artifact:
    """What a file holds; if it is that of a chunk, these are the first samples of its number, or all of them."""
    is_chunk = file.parent.name == _CHUNKS
    kept = artifacts.load(file, name="study chunk" if is_chunk else "study", version=_VERSION, remedy=_REMEDY)
    if is_chunk:
        index, expected = kept.tensors["index"].tolist(), samples_of(int(file.name), kept.settings)
        if not index or index != list(expected[: len(index)]):
            held = f"samples {index[0]} to {index[-1]}" if index else "no samples"
            raise artifacts.DamagedError(
                f"{file}.safetensors holds {held}, by its number those from {expected.start} on. {_REMEDY}"
            )
    return kept


def _part(file: Path) -> Part:
    """Name, settings and columns of a file."""
    kept = _loaded(file)
    # Version 0.1 counted a shard as a study of its own. Which samples there are, their numbers tell.
    return str(file), {key: value for key, value in kept.settings.items() if key != "shard"}, kept.tensors


def _to_go_on_from(folder: Path, settings: Mapping[str, Any]) -> list[Part]:
    """What a folder holds of this study; its damaged files are renamed, with a warning."""
    parts, damaged = [], []
    for file in _files(folder):
        try:
            parts.append(_part(file))
            _refuse(folder, differences(parts[-1][1], settings))
        except artifacts.DamagedError as error:
            damaged.append((file.with_name(f"{file.name}.safetensors"), str(error).removesuffix(_REMEDY)))
    for file, said in damaged:
        aside = file.with_name(f"{file.name}.damaged-{time.time_ns()}")
        with suppress(FileNotFoundError):  # another process was faster
            file.rename(aside)
            warnings.warn(f"{said}It is called {aside.name} now, and its samples are computed again", stacklevel=4)
    return parts


def _settings_to_go_on(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings with which to go on in a folder: those in it, which may differ in rounding."""
    if not (files := _files(folder)):
        return settings
    stored = _part(files[0])[1]
    _refuse(folder, differences(stored, settings))
    return stored


def _refuse(path: str | Path, found: Sequence[str]) -> None:
    if found:
        raise ValueError(f"{path} holds another study: {'; '.join(found)}. Write elsewhere, or delete that study")


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
    path = Path(str(path).removesuffix(".safetensors"))
    files = _files(path) if path.is_dir() else [path]
    if not files or not artifacts.exists(files[0]):
        raise ValueError(f"there is no study {'in ' * path.is_dir()}{path}")
    first, *chunks = [_part(file) for file in files]
    parts = [first]
    for name, settings, table in chunks:
        # Beside the file of Study.save lie the chunks that it was made of, and those that have come since.
        new = ~torch.isin(table["index"], first[2]["index"])
        parts.append((name, settings, {key: column[new] for key, column in table.items()}))
    return _put_together(parts)


def origin(folder: Path) -> tuple[dict[str, Any], float | None] | None:
    """Provenance of the first chunk of a study and seconds of all, as far as chunks are there; None without a study."""
    files = _files(folder)
    chunks = [_loaded(file) for file in files if file.parent.name == _CHUNKS]
    if not chunks:
        return ({}, None) if files else None
    return chunks[0].provenance, sum(chunk.record["seconds"] for chunk in chunks)


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
