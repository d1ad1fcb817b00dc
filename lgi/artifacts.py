"""Where things are on disk, and how they get there whole.

Three kinds of files are found through this module, from any working directory: raw data that the project did not make
(MNIST, VGG-19), artefacts that it made (trained models, latent codes, expensive results) and the output of a run
(recorded results, figures).

An artefact is one file, ``<path>.safetensors``: beside the tensors, its header holds as JSON everything else (settings,
record, provenance) and a digest of all of it. Renaming the file into place is the only moment at which an artefact
changes, so that whatever interrupts a writer, there is the old or the new; a truncated or edited file is refused.
(Version 0.1 wrote a copy of the JSON into a second file, ``<path>.json``. Nothing reads it any more.)
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import platformdirs
import safetensors.torch
import torch
from torch import Tensor

if sys.platform != "win32":
    import fcntl

_REMEDY = (
    "If the file is shipped with lgi, restore it (git restore, or reinstall lgi); if you wrote it, delete it and write "
    "it again. "
    "recompute=True of load_or_compute (retrain = True in notebook 01) computes afresh, into the cache."
)


class ArtifactError(ValueError):
    """A file of the project is damaged, not for these settings, or cannot be written."""


class DamagedError(ArtifactError):
    """What a file holds is not what was written into it under its name."""


# ---------------------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def repository_root() -> Path | None:
    """Folder of the clone that this package is imported from.

    Returns
    -------
    pathlib.Path or None
        The folder that holds ``pyproject.toml`` and the package ``lgi``; None where lgi is installed without them.
    """
    root = Path(__file__).resolve().parents[1]
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return None
    return root if project == "lgi" else None


def _folder_from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable)
    # A relative value would mean another folder for each notebook server and test runner; `make` starts at the root.
    return (repository_root() or Path.cwd()) / Path(value).expanduser() if value else None


def data_folder() -> Path:
    """Folder of the shipped artefacts: ``data/`` of the repository, else the copy inside the installed package."""
    root = repository_root()
    return root / "data" if root else Path(__file__).resolve().parent / "_shipped"


def raw_data_folders() -> list[Path]:
    """Folders in which raw data are looked for, first one first; downloads go into the last.

    Returns
    -------
    list of pathlib.Path
        ``LGI_DATA`` where it is set (a relative value counts from the repository), then ``data/`` of the repository;
        without a repository `cache_folder`, because an installed package is no place for downloads.
    """
    from_environment = _folder_from_environment("LGI_DATA")
    return [*([from_environment] if from_environment else []), data_folder() if repository_root() else cache_folder()]


def cache_folder() -> Path:
    """Folder of computed artefacts: ``LGI_CACHE``, else ``data/cache`` of the repository, else the user's cache."""
    root = repository_root()
    default = root / "data" / "cache" if root else platformdirs.user_cache_path("lgi")
    return _folder_from_environment("LGI_CACHE") or default


def runs_folder() -> Path:
    """Folder of runs: ``LGI_RUNS``, else ``runs/`` of the repository, else ``runs/`` of the working directory."""
    return _folder_from_environment("LGI_RUNS") or (repository_root() or Path.cwd()) / "runs"


# ---------------------------------------------------------------------------------------------------------------------
# Settings and their hash
# ---------------------------------------------------------------------------------------------------------------------


def _plain(value: object, where: str, *, convert_tensors: bool = False) -> Any:
    """Reduce a value to what JSON can hold without loss, or raise naming the entry."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        later = [field for field in dataclasses.fields(value) if field.metadata.get("added_later")]
        left_out = {field.name for field in later if getattr(value, field.name) == field.default}
        value = {key: entry for key, entry in vars(value).items() if key not in left_out}
    if isinstance(value, np.generic) or (convert_tensors and isinstance(value, Tensor) and value.ndim == 0):
        value = value.item()
    # What holds itself is so, too.
    if where.count(".") + where.count("[") > 100:
        raise ArtifactError(f"{where:.40}...: nested more than 100 deep")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ArtifactError(f"{where}: expected string keys, got {key!r} of {type(key).__name__}; use str(key)")
        return {key: _plain(item, f"{where}.{key}", convert_tensors=convert_tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", convert_tensors=convert_tensors) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ArtifactError(f"{where}: expected a finite number, got {value}; use None, or a tensor of the artefact")
    if value is None or isinstance(value, int | float | str):
        return value
    raise ArtifactError(
        f"{where}: got {type(value).__name__}; use numbers, strings, None, lists, mappings or dataclasses of these. "
        "A path differs between machines: name what the file contains. Tensors belong among the artefact's tensors"
    )


def _canonical(value: object) -> str:
    """JSON text that is the same for equal values: sorted keys, no spaces, floats by repr."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _sha256(text: str, data: bytes = b"") -> str:
    return hashlib.sha256(text.encode() + data).hexdigest()


def settings_hash(name: str, settings: object, version: int | str) -> str:
    """SHA-256 of everything that determines an artefact.

    Parameters
    ----------
    name : str
        Name of the artefact.
    settings : mapping or dataclass
        Numbers, strings, None, and lists, tuples, mappings, dataclasses of these. Key order does not matter, a tuple
        equals a list, a dataclass equals the mapping of its fields; 1 and 1.0 differ. A field with
        ``metadata={"added_later": True}`` is left out at its default, so that what was kept before it was there still
        has the same hash.
    version : int or str
        Version of the code that computes it, raised by hand when its results change.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    ArtifactError
        If a setting is a path, a tensor, not finite, or of a type that has no canonical text; the entry is named.
    """
    return _sha256(_canonical({"name": name, "settings": _plain(settings, "settings"), "version": version}))


# ---------------------------------------------------------------------------------------------------------------------
# Writing and reading
# ---------------------------------------------------------------------------------------------------------------------


def _check_name(kind: str, value: str) -> None:
    # One component of a path on every system, whatever a sweep puts into it ("alpha=0.5,seed=1").
    if not re.fullmatch(r"\w[\w .,=+-]*", value):
        raise ArtifactError(f"{kind}: expected letters, digits and any of ' .,=+-_', got {value!r}")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary file beside target that becomes target when the block ends well, and vanishes when it does not.

    Its writer holds a lock on it. What a killed writer has left in the folder has none, and is deleted.

    Parameters
    ----------
    target : pathlib.Path
        The file to write; missing folders are made.

    Yields
    ------
    pathlib.Path
        The temporary file, empty.

    Raises
    ------
    OSError
        If it cannot be written; the old file then still stands.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(".*.tmp"):
        # The name that is given below, and no other program's.
        if sys.platform != "win32" and re.fullmatch(r"\..+\.[0-9a-f]{32}\.tmp", left.name):
            with suppress(OSError), left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
    # Not tempfile.mkstemp: its files are readable by their owner only, also after the renaming.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with _made(temporary) as file:
            yield temporary
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # which renames no open file
            os.replace(temporary, target)  # noqa: PTH105 - tests interrupt exactly this call
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _made(temporary: Path) -> BinaryIO:
    """A new file, locked: what another writer takes away before it is locked, as left behind, is made again."""
    while True:
        file = temporary.open("xb")
        if sys.platform == "win32":
            return file
        with suppress(OSError):  # a file system without locks: what is left there stays
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Replace a file as a whole, or raise an `ArtifactError` that says what to do."""
    try:
        with replacing(target) as temporary:
            yield temporary
    except OSError as error:
        raise ArtifactError(
            f"cannot write {target}: {error.strerror or error}. Free space there or make it writable; LGI_CACHE and "
            "LGI_RUNS name other folders for computed artefacts and for runs."
        ) from error


def check_writable(folder: Path, advice: str) -> None:
    """Raise before an expensive computation rather than after it.

    Raises
    ------
    ArtifactError
        If no file can be made in the folder; ends with the advice.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArtifactError(f"cannot write to {folder}: {error.strerror}. {advice}.") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """Tensors and record as they were saved together.

    Parameters
    ----------
    tensors : dict of str to Tensor
        On the CPU, with the dtypes and shapes that were saved.
    record : dict
        The JSON part.
    settings : dict
    version : int or str
        What determines the artefact.
    provenance : dict
        Where, when and with what it was computed, see `provenance`.
    source : {"shipped", "cache", "computed"}
        Where it comes from.
    path : pathlib.Path
        Where it is, as it was asked for.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]
    settings: dict[str, Any]
    version: int | str
    provenance: dict[str, Any]
    source: Literal["shipped", "cache", "computed"]
    path: Path


def _file(path: str | Path) -> Path:
    # with_suffix would cut a name at its last dot.
    return Path(str(path).removesuffix(".safetensors") + ".safetensors")


def _stored(key: str, value: object) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(np.array(value))
    if not isinstance(value, Tensor):
        got = getattr(value, "dtype", type(value).__name__)
        raise ArtifactError(f"tensors[{key!r}]: expected a tensor or numeric array, got {got}; use the record")
    # A copy, because safetensors refuses tensors that share memory or are not contiguous.
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _split(content: bytes) -> tuple[dict[str, str], str, bytes]:
    """Take a safetensors file apart: its metadata, the rest of its header as canonical JSON, its tensor data."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    return header.pop("__metadata__", {}), _canonical(header), content[end:]


def save(
    path: str | Path,
    tensors: Mapping[str, Tensor | npt.NDArray[Any]],
    record: Mapping[str, Any],
    *,
    name: str,
    settings: object,
    version: int | str,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write an artefact, whole or not at all.

    Parameters
    ----------
    path : pathlib.Path
        Where; ``.safetensors`` is appended where it is missing. Missing folders are made.
    tensors : mapping of str to Tensor or numpy array
        Any shapes, dtypes and devices; copied, never changed.
    record : mapping
        What is not a tensor; JSON values, numpy scalars and tensors without dimensions.
    name, settings, version
        What determines the artefact, see `settings_hash`.
    provenance : mapping, optional
        What `provenance` returned.

    Raises
    ------
    ArtifactError
        If a value cannot be stored without loss, or the file cannot be written (the old one then still stands).
    """
    document = {
        "name": name,
        "version": version,
        "settings": _plain(settings, "settings"),
        "settings_hash": settings_hash(name, settings, version),
        "record": _plain(record, "record", convert_tensors=True),
        "provenance": _plain(provenance or {}, "provenance"),
    }
    stored = {key: _stored(key, value) for key, value in tensors.items()}
    _, header, data = _split(safetensors.torch.save(stored))
    digest = _sha256(_canonical(document) + header, data)
    # One entry, because safetensors writes several in random order: the same artefact must give the same bytes.
    metadata = {"lgi": _canonical({"document": document, "digest": digest})}
    with _replacing(_file(path)) as temporary:
        temporary.write_bytes(safetensors.torch.save(stored, metadata=metadata))


def load(
    path: str | Path, *, name: str, settings: object = None, version: int | str | None = None, remedy: str = _REMEDY
) -> Artifact:
    """Read an artefact and check that it is whole and the one that was asked for.

    Parameters
    ----------
    path : pathlib.Path
        Where, with or without ``.safetensors``.
    name : str
        Name under which it was saved.
    settings : mapping or dataclass, optional
        Settings that it must have; not checked when None.
    version : int or str, optional
        Version that it must have; not checked when None.
    remedy : str
        What to do about a file that is refused.

    Returns
    -------
    Artifact
        Its source is "cache" below `cache_folder`, else "shipped".

    Raises
    ------
    ArtifactError
        If the file is missing, truncated or edited (a `DamagedError`), or if name, settings or version differ. The
        message names the file, the settings that differ, and the remedy.
    """
    path, file = Path(path), _file(Path(path))
    try:
        content = file.read_bytes()
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise ArtifactError(f"{file} {what}. {remedy}") from error
    try:
        metadata, header, data = _split(content)
        kept = json.loads(metadata["lgi"])
        document: dict[str, Any] = kept["document"]
        if kept["digest"] != _sha256(_canonical(document) + header, data):
            raise ValueError("digest")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{file} is truncated or was edited. {remedy}") from error
    if document["name"] != name:
        raise ArtifactError(f"{file} holds {document['name']!r}, expected {name!r}. {remedy}")
    fields = {key: document[key] for key in ("record", "settings", "version", "provenance")}
    before = fields["settings"] | {"version": fields["version"]}
    after = before if settings is None else _plain(settings, "settings")
    after = after | {"version": before["version"] if version is None else version}
    pairs = {key: (before.get(key, "absent"), after.get(key, "absent")) for key in sorted(before.keys() | after.keys())}
    differing = [f"{key} is {a!r}, expected {b!r}" for key, (a, b) in pairs.items() if _canonical(a) != _canonical(b)]
    if differing:
        raise ArtifactError(f"{file} is of other settings: {'; '.join(differing)}. {remedy}")
    source: Literal["shipped", "cache"] = "cache" if path.is_relative_to(cache_folder()) else "shipped"
    return Artifact(tensors=safetensors.torch.load(content), path=path, source=source, **fields)


def exists(path: str | Path) -> bool:
    """Whether there is an artefact at path; `load` tells whether it is whole."""
    return _file(path).exists()


def remove(path: str | Path) -> None:
    """Delete the artefact at path, if there is one."""
    _file(path).unlink(missing_ok=True)


def load_or_compute(
    name: str,
    settings: object,
    compute: Callable[[], tuple[Mapping[str, Tensor | npt.NDArray[Any]], Mapping[str, Any]]],
    *,
    version: int | str = 1,
    folder: str = "results",
    recompute: bool = False,
) -> Artifact:
    """Return the artefact of these settings: the shipped one, else the cached one, else computed now and cached.

    Parameters
    ----------
    name : str
        Name of the artefact; the shipped one is ``<data_folder>/<folder>/<name>``, the cached one
        ``<cache_folder>/<folder>/<name>-<first 16 digits of the hash>``.
    settings : mapping or dataclass
        Everything that determines the result, see `settings_hash`.
    compute : callable
        Called without arguments when nothing stored fits; returns tensors and record, as `save` takes them.
    version : int or str
        Version of the code that computes it, raised by hand when its results change.
    folder : str
        Folder below data and cache, for example "models" or "results".
    recompute : bool
        Compute even if it is stored. Writes into the cache alone: shipped files are written with `save`.

    Returns
    -------
    Artifact
        As read back from disk, so that a first and a second call give the same.

    Raises
    ------
    ArtifactError
        If a stored file is damaged (see `load`), if the cache cannot be written (found out before computing), or if
        compute returns anything else than tensors and record.

    Notes
    -----
    A shipped artefact of other settings is not for this call and left alone.
    """
    _check_name("name", name)
    _check_name("folder", folder)
    wanted = settings_hash(name, settings, version)
    shipped = data_folder() / folder / name
    cached = cache_folder() / folder / f"{name}-{wanted[:16]}"
    if not recompute:
        if exists(shipped):
            found = load(shipped, name=name)
            if settings_hash(name, found.settings, found.version) == wanted:
                return found
        if exists(cached):
            return load(cached, name=name, settings=settings, version=version)

    check_writable(cached.parent, "Set LGI_CACHE to a folder that can be written")
    result = compute()
    if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, Mapping) for part in result)):
        raise ArtifactError(f"compute of {name!r}: expected (tensors, record), got {type(result).__name__}")
    save(cached, *result, name=name, settings=settings, version=version, provenance=provenance())
    return dataclasses.replace(load(cached, name=name), source="computed")


# ---------------------------------------------------------------------------------------------------------------------
# Provenance
# ---------------------------------------------------------------------------------------------------------------------


def _cpu_name() -> str:
    with suppress(OSError):
        if found := re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
            return found[1]
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    root = repository_root()
    if root is None:
        return None
    # "-dirty" tells that the commit alone does not give the code that ran.
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def installed_version(package: str = "lgi") -> str | None:
    """Version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance(*, seed: int | None = None, command: str | None = None) -> dict[str, Any]:
    """Where, when and with what a result is computed; no user name, host name or absolute path.

    Parameters
    ----------
    seed : int, optional
        Seed of the computation.
    command : str, optional
        Command that starts it; the folders of absolute paths in it are cut off.

    Returns
    -------
    dict
        date (UTC, ISO 8601), python, platform, cpu, cores, versions (of the installed packages that matter) and, where
        there is one, gpu, git_commit (with "-dirty" after uncommitted changes), seed, command.
    """
    packages = ("lgi", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "safetensors")
    versions = {package: found for package in packages if (found := installed_version(package))}
    known = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
        "git_commit": _git_commit(),
        "seed": seed,
        "command": re.sub(r"(?<![\w.~])/(?:[^\s/]+/)*(?=[^\s/])", "", command) if command else None,
    }
    return {key: value for key, value in known.items() if value is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------


def _run_file(run: str, folder: str, name: str) -> Path:
    _check_name("run", run)
    _check_name("name", name)
    return runs_folder() / run / folder / name


def record_results(notebook: str, results: Mapping[str, Any], *, run: str = "default") -> Path:
    """Write the results of a notebook to ``<runs_folder>/<run>/results/<notebook>.json``.

    Parameters
    ----------
    notebook : str
        Name of the notebook without suffix.
    results : mapping
        JSON values, numpy scalars and tensors without dimensions; all finite. The entry "headline", a string, is what
        ``make reproduce`` shows in its table.
    run : str
        Name of the run.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ArtifactError
        If a value has no JSON form, a name is not one path component, or the file cannot be written.
    """
    file = _run_file(run, "results", f"{notebook}.json")
    plain = _plain(results, "results", convert_tensors=True)
    if not isinstance(plain, dict) or not isinstance(plain.get("headline", ""), str):
        raise ArtifactError(f"results: expected a mapping whose entry 'headline', if any, is a string, got {plain!r}")
    with _replacing(file) as temporary:
        temporary.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def read_results(notebook: str, run: str = "default") -> dict[str, Any]:
    """Read what `record_results` wrote.

    Raises
    ------
    ArtifactError
        If the notebook has not recorded anything in this run, or the file is damaged.
    """
    file = _run_file(run, "results", f"{notebook}.json")
    if not file.exists():
        raise ArtifactError(f"{file} is missing: run notebook {notebook!r} in run {run!r} first")
    return read_mapping(file, f"delete it and run notebook {notebook!r} again")


def read_mapping(file: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Raises
    ------
    ArtifactError
        If it holds none; ends with the remedy.
    """
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("no mapping")
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is damaged: {remedy}") from error
    return content


# Dates and program versions would make two files of the same figure differ.
_FIGURE_METADATA = {"png": ["Software"], "pdf": ["CreationDate", "Creator", "Producer"]}


def save_figure(figure: Any, name: str, *, run: str = "default") -> list[Path]:
    """Write a figure to ``<runs_folder>/<run>/figures``: ``<name>.png`` for reading, ``<name>.pdf`` for print.

    Neither has a date in it.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        The figure; drawn with its own size and style.
    name : str
        Name of the files, without suffix.
    run : str
        Name of the run.

    Returns
    -------
    list of pathlib.Path
        The files, PNG first.

    Raises
    ------
    ArtifactError
        If a name is not one path component, or a file cannot be written.
    """
    files = []
    for format_, left_out in _FIGURE_METADATA.items():
        files.append(_run_file(run, "figures", f"{name}.{format_}"))
        with _replacing(files[-1]) as temporary:
            figure.savefig(temporary, format=format_, metadata=dict.fromkeys(left_out))
    return files
