"""Studies of Algorithm 1 as they are kept: a table with statistics, in files that survive a kill, whole or in shards.

What determines a study are its settings, which `lgi.improvement` makes. Of these, this module reads ``n_samples``,
``chunk_size`` (chunks begin at its multiples), ``shard`` (which chunks), ``latent_dim``, ``seed`` and ``fingerprint``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
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
        """Number of samples that were asked for, of the shard if this is one; a partial study holds fewer."""
        return sum(len(samples_of(number, self.settings)) for number in chunks_of(self.settings))

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

    def save(self, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> None:
        """Write ``<path>.safetensors`` and ``<path>.json``; :func:`load_study` reads them back.

        So does pandas: ``pandas.DataFrame(safetensors.numpy.load_file("study.safetensors"))`` is the table of
        ``columns``.

        Parameters
        ----------
        path : path
            Where, without suffix.
        provenance : mapping, optional
            What :func:`lgi.artifacts.provenance` returned; without it, equal studies are equal files.

        Raises
        ------
        ValueError
            If another study is there, or more samples of this one.
        lgi.artifacts.ArtifactError
            If the files cannot be written, or what is there is no study, or a damaged one.
        """
        path = _without_suffix(path)
        if artifacts.exists(path):
            stored = artifacts.load(path, name="study", version=_VERSION)
            _refuse_another(path, stored.settings, self.settings)
            if (n_stored := len(stored.tensors["index"])) > len(self):
                raise ValueError(f"{path} holds {n_stored} samples of this study, more than these {len(self)}")
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
        artifacts.save(
            path,
            self.columns,
            record,
            name="study",
            settings=self.settings,
            version=_VERSION,
            provenance=provenance,
        )

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


_FIELDS = tuple(field.name for field in dataclasses.fields(Study) if field.name != "settings")


def study_of(tables: Sequence[Mapping[str, Any]], settings: dict[str, Any]) -> Study:
    """Study of the columns of its chunks or shards, one after the other; the inverse of ``Study.columns``."""
    columns = {name: torch.cat([torch.as_tensor(table[name]) for table in tables]) for name in tables[0]}
    for name in ("start", "end"):
        columns[name] = torch.stack([columns.pop(f"{name}_{k}") for k in range(settings["latent_dim"])], dim=-1)
    return Study(**columns, settings=settings)


def bootstrap_interval(x: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of ``x`` (n,): the percentiles of 2000 bootstrap samples, of a fixed seed.

    Of a single value, that value twice.
    """
    if len(x) == 1:
        return float(x[0]), float(x[0])
    from scipy.stats import bootstrap

    # In batches, because all resamples of 100,000 values at once take gigabytes.
    found = bootstrap(
        (x,),
        np.mean,
        n_resamples=2000,
        batch=max(1, (1 << 21) // len(x)),
        method="percentile",
        random_state=0,
    ).confidence_interval
    return float(found.low), float(found.high)


# --------------------------------------------------------------------------------------------------------------------
# Long runs
# --------------------------------------------------------------------------------------------------------------------


def chunks_of(settings: Mapping[str, Any]) -> range:
    """Numbers of the chunks of a study, or of its shard: whole ones, so that a chunk is the same in both."""
    n_chunks = math.ceil(settings["n_samples"] / settings["chunk_size"])
    i, n = settings["shard"] or (1, 1)
    return range(n_chunks * (i - 1) // n, n_chunks * i // n)


def samples_of(number: int, settings: Mapping[str, Any]) -> range:
    """Numbers of the samples of a chunk."""
    size = settings["chunk_size"]
    return range(number * size, min((number + 1) * size, settings["n_samples"]))


def run(
    settings: dict[str, Any], compute: Callable[[int], Table], folder: Path | None, *, progress: bool | None
) -> Study:
    """Compute a study chunk by chunk; with a folder, go on with what is there.

    ``folder/lgi_study_chunks`` holds a chunk a file until ``folder/study`` is written; nothing else is ever deleted.
    Whenever this is killed, the same call goes on, and ends with the same ``study``; dates and seconds are kept apart,
    in ``folder/provenance``.

    Parameters
    ----------
    settings : dict
        Everything that determines the study.
    compute : callable
        Takes the number of a chunk and returns its table.
    folder : pathlib.Path, optional
        Where to keep the study; by default nowhere.
    progress : bool, optional
        Whether to show a progress bar; by default if the output is a terminal.

    Returns
    -------
    Study

    Raises
    ------
    ValueError
        If the folder holds another study, or comes to hold one meanwhile, naming what differs.
    lgi.artifacts.ArtifactError
        If the folder cannot be written, or a file in it is damaged.
    """
    # As they come back from disk: tuples as lists, and in the order that makes equal studies equal files.
    settings = json.loads(json.dumps(settings, sort_keys=True))
    if folder is None:
        # Closed, so that the bar ends before a failure is told.
        with closing(_with_progress(settings, progress)) as numbers:
            return study_of([compute(number) for number in numbers], settings)
    settings = _settings_to_go_on(settings, folder)
    if not artifacts.exists(folder / "study"):
        artifacts.check_writable(folder, _ELSEWHERE)
        provenance = artifacts.provenance(seed=settings["seed"])
        for number in _with_progress(settings, progress):
            if not artifacts.exists(_chunk_path(folder, number)):
                begin = time.perf_counter()
                table = compute(number)
                # Once more: another study may have begun here meanwhile.
                _settings_to_go_on(settings, folder)
                artifacts.save(
                    _chunk_path(folder, number),
                    table,
                    {"seconds": time.perf_counter() - begin},
                    name="study chunk",
                    settings=settings,
                    version=_VERSION,
                    provenance=provenance,
                )
        _finish(settings, folder)
    # Also what a run left that was killed at this very point.
    _remove_chunks(settings, folder)
    return load_study(folder)


def _with_progress(settings: Mapping[str, Any], show: bool | None) -> Generator[int, None, None]:
    """Numbers of the chunks, with a progress bar over their samples."""
    sizes = {number: len(samples_of(number, settings)) for number in chunks_of(settings)}
    with progress_bar(sum(sizes.values()), desc="improvement", unit="samples", show=show) as advance:
        for number, size in sizes.items():
            yield number
            advance(size)


def _finish(settings: dict[str, Any], folder: Path) -> None:
    """Put the chunks together."""
    _settings_to_go_on(settings, folder)
    chunks = [_load_chunk(folder, number, settings) for number in chunks_of(settings)]
    seconds = torch.tensor([chunk.record["seconds"] for chunk in chunks], dtype=torch.float64)
    sessions = {chunk.provenance["date"]: chunk.provenance for chunk in chunks}
    artifacts.save(
        folder / "provenance",
        {"chunk": torch.tensor(chunks_of(settings)), "seconds": seconds},
        {"seconds": float(seconds.sum()), "sessions": list(sessions.values())},
        name="study provenance",
        settings=settings,
        version=_VERSION,
    )
    study_of([chunk.tensors for chunk in chunks], settings).save(folder / "study")


def _chunk_path(folder: Path, number: int) -> Path:
    return folder / "lgi_study_chunks" / f"{number:06d}"


def _remove_chunks(settings: Mapping[str, Any], folder: Path) -> None:
    """Delete the files of a study's own chunks, also half-written ones, and their folder if nothing else is in it."""
    for number in chunks_of(settings):
        path = _chunk_path(folder, number)
        with suppress(OSError):
            artifacts.remove(path)
            for file in path.parent.glob(f".{path.name}.*.tmp"):
                file.unlink(missing_ok=True)
    with suppress(OSError):
        _chunk_path(folder, 0).parent.rmdir()


def _load_chunk(folder: Path, number: int, settings: Mapping[str, Any] | None = None) -> artifacts.Artifact:
    return artifacts.load(_chunk_path(folder, number), name="study chunk", settings=settings, version=_VERSION)


def _chunks_on_disk(folder: Path) -> list[int]:
    files = _chunk_path(folder, 0).parent.glob("*.json")
    return sorted(int(file.stem) for file in files if re.fullmatch("[0-9]{6}|[1-9][0-9]{6,}", file.stem))


def _settings_to_go_on(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings with which to go on in a folder: those in it, which may differ in rounding."""
    if artifacts.exists(folder / "study"):
        stored = artifacts.load(folder / "study", name="study", version=_VERSION).settings
    elif numbers := _chunks_on_disk(folder):
        stored = _load_chunk(folder, numbers[0]).settings
    else:
        return settings
    _refuse_another(folder, stored, settings)
    return stored


def _refuse_another(path: Path, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    if found := _differences(stored, settings):
        raise ValueError(f"{path} holds another study: {'; '.join(found)}. Write elsewhere, or delete that study")


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of two studies, rounding of the fingerprint on other machines apart."""
    found = []
    for key in sorted(a.keys() | b.keys()):
        x: Any = a.get(key)
        y: Any = b.get(key)
        if key == "fingerprint":
            found += [f"{name} differ" for name in x if not _nearly_equal(x[name], y[name], *_ROUNDING[name])]
        elif isinstance(x, dict) and isinstance(y, dict):
            found += [f"{key}: {difference}" for difference in _differences(x, y)]
        elif x != y:
            found.append(f"{key} is {x!r}, not {y!r}")
    return found


# Relative and absolute differences that other machines and devices may make in the numbers of a fingerprint.
_ROUNDING = {
    "speeds in the metric": (1e-3, 0.0),
    "parameters of the metric": (1e-5, 0.0),
    "codes": (1e-5, 0.0),
    # In units of the norms of the codes, since sums may cancel.
    "order and signs of the codes": (0.0, 1e-5),
}


def _nearly_equal(x: Sequence[float], y: Sequence[float], relative: float, absolute: float) -> bool:
    return len(x) == len(y) and np.allclose(x, y, rtol=relative, atol=absolute)


def load_study(path: str | Path) -> Study:
    """Read a study: a finished one, or as much as there is of one that was interrupted.

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
        If there is no study, or only shards of one.
    lgi.artifacts.ArtifactError
        If a file is damaged.
    """
    path = Path(path)
    if path.is_dir() and not artifacts.exists(path / "study"):
        if not (numbers := _chunks_on_disk(path)):
            hint = "; it holds shards, for lgi.merge_studies" if any(path.glob("shard_*")) else ""
            raise ValueError(f"there is no study in {path}{hint}")
        settings = _load_chunk(path, numbers[0]).settings
        return study_of([_load_chunk(path, number, settings).tensors for number in numbers], settings)
    path = path / "study" if path.is_dir() else _without_suffix(path)
    if not artifacts.exists(path):
        raise ValueError(f"there is no study {path}")
    stored = artifacts.load(path, name="study", version=_VERSION)
    return study_of([stored.tensors], stored.settings)


def _without_suffix(path: str | Path) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path


def merge_studies(studies: Sequence[Study | str | Path], *, folder: str | Path | None = None) -> Study:
    """Join the shards of a study.

    Parameters
    ----------
    studies : sequence of Study or path
        All shards, in any order; paths as for :func:`load_study`.
    folder : path, optional
        Where to keep the study, in the files that :func:`lgi.worst_case_improvement` writes; ``provenance`` has the
        seconds and sessions of the shards that are given as paths. The same study may be there already.

    Returns
    -------
    Study
        The same as of one run without shards.

    Raises
    ------
    ValueError
        If shards are missing, there twice, unfinished, of different studies, or not shards at all: which ones; if the
        folder holds another study, naming what differs.
    lgi.artifacts.ArtifactError
        If a file is missing or damaged, or the folder cannot be written.
    """
    if not studies:
        raise ValueError("expected the shards of a study, got none")
    shards: dict[int, tuple[str, Study]] = {}
    first_name, first = "", None
    for k, entry in enumerate(studies):
        name, study = (f"study {k + 1}", entry) if isinstance(entry, Study) else (str(entry), load_study(entry))
        if study.settings["shard"] is None:
            raise ValueError(f"{name} is no shard, but a study of its own")
        i, n = study.settings["shard"]
        if first is None:
            first_name, first = name, study
        if n != first.settings["shard"][1]:
            raise ValueError(f"{first_name} is one of {first.settings['shard'][1]} shards, {name} one of {n}")
        if found := _differences(first.settings | {"shard": None}, study.settings | {"shard": None}):
            raise ValueError(f"{first_name} and {name} are shards of different studies: {'; '.join(found)}")
        if i in shards:
            raise ValueError(f"shard {i}/{n} is there twice: {shards[i][0]} and {name}")
        if not study.complete:
            raise ValueError(f"{name}, shard {i}/{n}, has {len(study)} of {study.n_samples} samples: finish it first")
        shards[i] = (name, study)
    if missing := [str(i) for i in range(1, n + 1) if i not in shards]:
        raise ValueError(f"of {n} shards, these are missing: {', '.join(missing)}")
    merged = study_of([shards[i][1].columns for i in sorted(shards)], shards[1][1].settings | {"shard": None})
    if folder is not None:
        _keep_merged(merged, [shards[i] for i in sorted(shards)], Path(folder))
    return merged


def _keep_merged(merged: Study, shards: Sequence[tuple[str, Study]], folder: Path) -> None:
    """Write a merged study, and what is known of how its shards were computed."""
    _settings_to_go_on(merged.settings, folder)
    artifacts.check_writable(folder, _ELSEWHERE)
    known = [kept for name, shard in shards if (kept := _provenance_of(Path(name), shard.settings)) is not None]
    chunk = torch.cat([torch.zeros(0, dtype=torch.int64), *(kept.tensors["chunk"] for kept in known)])
    seconds = torch.cat([torch.zeros(0, dtype=torch.float64), *(kept.tensors["seconds"] for kept in known)])
    artifacts.save(
        folder / "provenance",
        {"chunk": chunk, "seconds": seconds},
        {
            "seconds": float(seconds.sum()),
            "sessions": [session for kept in known for session in kept.record["sessions"]],
            "merged": artifacts.provenance(seed=merged.settings["seed"]),
        },
        name="study provenance",
        settings=merged.settings,
        version=_VERSION,
    )
    merged.save(folder / "study")
    _remove_chunks(merged.settings, folder)


def _provenance_of(path: Path, settings: Mapping[str, Any]) -> artifacts.Artifact | None:
    """What is kept beside a study on disk, if it is of this one."""
    beside = (path if path.is_dir() else path.parent) / "provenance"
    if not artifacts.exists(beside):
        return None
    kept = artifacts.load(beside, name="study provenance", version=_VERSION)
    return kept if kept.settings == settings else None
