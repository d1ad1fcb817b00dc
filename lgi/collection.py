"""One table of the results of many runs: what was asked for, what came out, and where it was computed."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgi import artifacts
from lgi.studies import load_study, origin

if TYPE_CHECKING:
    import pandas as pd

# Entries of a list that are columns of their own, such as the ends of an interval; a longer list holds samples.
_MOST_ENTRIES = 4


def collect(folders: str | Path | Sequence[str | Path] | None = None) -> pd.DataFrame:
    """Make one table of the results of many runs, a row for each run and notebook, or for each study.

    Parameters
    ----------
    folders : path, or sequence of paths, optional
        Folders of runs, with wildcards: ``"runs/*"``. A relative path counts from the working directory or, where
        nothing is found there, from the repository. By default, all of :func:`lgi.artifacts.runs_folder`.

    Returns
    -------
    pandas.DataFrame
        Columns ``run``, ``notebook`` ("study" for a study of Algorithm 1), ``status``, ``headline`` and ``seconds``;
        then, flattened with dots, ``parameters.*`` (all of them, also those that were left alone), ``results.*`` and
        ``provenance.*``. Of lists with more than four entries there is nothing. Entries that a row lacks are missing
        values. Folders without results, such as that of the book, have no row.

    Raises
    ------
    ValueError
        If no folder is found, or none with results.
    lgi.artifacts.ArtifactError
        If a file is damaged: which one, and what to do.
    ImportError
        If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("lgi.collect makes a pandas table: pip install 'lgi[notebooks]', or pandas") from error
    found = _folders([artifacts.runs_folder() / "*"] if folders is None else folders)
    rows = [row for folder in found for row in (*_notebooks(folder), *_study(folder))]
    if not rows:
        names = ", ".join(folder.name for folder in found)
        raise ValueError(f"no results in {names}: expected folders of make reproduce, or of python -m lgi.algorithm1")
    groups = ("parameters.", "results.", "provenance.")
    columns = dict.fromkeys(column for row in rows for column in row)
    order = sorted(columns, key=lambda column: [column.startswith(group) for group in groups])
    return pd.DataFrame(rows, columns=order)


def _folders(patterns: str | Path | Sequence[str | Path]) -> list[Path]:
    """Folders that the patterns name, each once."""
    patterns = [patterns] if isinstance(patterns, str | Path) else patterns
    places = [Path.cwd(), *filter(None, [artifacts.repository_root()])]
    found: dict[Path, None] = {}
    for pattern in patterns:
        for place in places:
            paths = [Path(path) for path in sorted(glob.glob(str(place / Path(pattern).expanduser())))]  # noqa: PTH207
            if folders := [path for path in paths if path.is_dir()]:
                found |= dict.fromkeys(folders)
                break
        else:
            raise ValueError(
                f"no folder {pattern} in {' or '.join(map(str, places))}: run something first (make reproduce "
                "PARAMS=smoke takes minutes), or name folders of runs, such as 'runs/*'"
            )
    return list(found)


def _flat(prefix: str, value: object) -> Iterator[tuple[str, Any]]:
    """Names and values of what is nested."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}", item)
    elif not isinstance(value, list):
        yield prefix, value
    elif len(value) <= _MOST_ENTRIES:
        for k, item in enumerate(value):
            yield from _flat(f"{prefix}.{k}", item)


def _row(run: Path, about: Mapping[str, Any], **groups: object) -> dict[str, Any]:
    names = ("notebook", "status", "headline", "seconds")
    nested = (pair for name, value in groups.items() for pair in _flat(name, value))
    return {"run": run.name, **{name: about.get(name) for name in names}, **dict(nested)}


def _json(file: Path, remedy: str) -> dict[str, Any]:
    """Content of a file, empty if there is none."""
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("no mapping")
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise artifacts.ArtifactError(f"{file} is damaged: {remedy}") from error
    return content


def _notebooks(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of the notebooks that have run into a folder, in their order."""
    again = "delete it and run the notebook again"
    results = {file.stem: _json(file, again) for file in folder.glob("results/*.json")}
    summary = _json(folder / "summary.json", "delete it, and run the notebooks again, or do without their parameters")
    # Of a notebook that failed, what an earlier run has left is there, and this is what was said of that run.
    records = {record["notebook"]: record.get("kept", record) for record in summary.get("notebooks", [])}
    for name in sorted(records.keys() | results.keys()):
        record, numbers = records.get(name, {}), dict(results.get(name, {}))
        headline = numbers.pop("headline", None)
        about = {**record, "notebook": name, "headline": headline, "status": record.get("status", "ok")}
        parameters = record.get("defaults", {}) | record.get("parameters", {})
        yield _row(folder, about, parameters=parameters, results=numbers, provenance=record.get("provenance", {}))


def _study(folder: Path) -> Iterator[dict[str, Any]]:
    """Row of a study, if the folder holds one or what there is of it."""
    if (found := origin(folder)) is None:
        return
    (provenance, seconds), study = found, load_study(folder)
    status = "ok" if study.complete else f"{len(study)} of {study.n_samples} samples"
    about = {"notebook": "study", "headline": str(study), "status": status, "seconds": seconds}
    yield _row(folder, about, parameters=study.settings, results=study.record, provenance=provenance)
