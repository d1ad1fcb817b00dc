"""lgi.artifacts: a stored result comes back as it was saved, or it is refused."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lgi import artifacts
from lgi.artifacts import ArtifactError

ENDLESS: list = []
ENDLESS.append(ENDLESS)
SETTINGS = {"n": 3, "step_size": 0.1, "digits": (2, 4)}
ENTRY = {"name": "demo", "settings": SETTINGS, "version": 1}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Data and cache folders of one test; their names hold a space and non-ASCII letters."""
    data, cache = tmp_path / "dät a", tmp_path / "cäch e"
    monkeypatch.setattr(artifacts, "data_folder", lambda: data)
    monkeypatch.setenv("LGI_CACHE", str(cache))
    return data, cache


def put(path, value, **changes):
    artifacts.save(path, {"x": torch.full((4,), float(value))}, {"value": value}, **(ENTRY | changes))


def value_at(path):
    """The value of the artefact at path, after checking that tensors and record belong together."""
    artifact = artifacts.load(path, **ENTRY)
    assert artifact.tensors["x"].tolist() == [float(artifact.record["value"])] * 4
    return artifact.record["value"]


def stored(path):
    return path.with_name(path.name + ".safetensors")


def metadata_of(file):
    with safe_open(file, "pt") as content:
        return json.loads(content.metadata()["lgi"])


def temporary_files(folder):
    return list(folder.rglob("*.tmp"))


# Folders --------------------------------------------------------------------------------


def test_repository_is_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = artifacts.repository_root()
    assert root == Path(__file__).resolve().parents[1]
    assert artifacts.data_folder() == root / "data"


@pytest.fixture
def no_variables(monkeypatch):
    for variable in ("LGI_DATA", "LGI_CACHE", "LGI_RUNS"):
        monkeypatch.delenv(variable, raising=False)


def test_environment_names_the_folders(no_variables, monkeypatch):
    root = artifacts.repository_root()

    def folders():
        return [*artifacts.raw_data_folders(), artifacts.cache_folder(), artifacts.runs_folder()]

    assert folders() == [root / "data", root / "data" / "cache", root / "runs"]
    monkeypatch.setenv("LGI_DATA", "/some/data")
    monkeypatch.setenv("LGI_CACHE", "/some/cache")
    monkeypatch.setenv("LGI_RUNS", "elsewhere")
    assert folders() == [Path("/some/data"), root / "data", Path("/some/cache"), root / "elsewhere"]
    monkeypatch.setenv("LGI_RUNS", "/some/runs")
    assert artifacts.runs_folder() == Path("/some/runs")


@pytest.mark.parametrize("pyproject", [None, '[project]\nname = "other"\n', "[tool.x]\n", "not toml"])
def test_installed_copy_knows_that_it_has_no_repository(pyproject, no_variables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lgi").mkdir()
    (tmp_path / "lgi" / "artifacts.py").write_bytes(Path(artifacts.__file__).read_bytes())
    if pyproject is not None:
        (tmp_path / "pyproject.toml").write_text(pyproject, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("installed", tmp_path / "lgi" / "artifacts.py")
    installed = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "installed", installed)
    spec.loader.exec_module(installed)
    assert installed.repository_root() is None
    assert installed.data_folder() == tmp_path / "lgi" / "_shipped"
    assert installed.cache_folder().name == "lgi"
    assert installed.raw_data_folders() == [installed.cache_folder()]
    assert installed.runs_folder() == tmp_path / "runs"


# Hash --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    alpha: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = Inner()
    digits: tuple[int, ...] = (2, 4)


def test_hash_is_a_fixed_function_of_its_text():
    # Written out by hand: a change of this number makes every shipped file count as one of other settings.
    text = '{"name":"demo","settings":{"digits":[2,4],"n":3,"step_size":0.1},"version":1}'
    assert artifacts.settings_hash(**ENTRY) == hashlib.sha256(text.encode()).hexdigest()


def test_hash_sees_values_and_not_containers():
    same = [Outer(), {"digits": [2, 4], "inner": {"alpha": np.float64(0.5)}}, {"inner": Inner(), "digits": (2, 4)}]
    assert len({artifacts.settings_hash("a", s, 1) for s in same}) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Path("x"), r"settings\.a\.b\[1\].*path differs between machines"),
        (torch.ones(2), r"settings\.a\.b\[1\]: got Tensor"),
        (torch.tensor(1.0), r"settings\.a\.b\[1\]: got Tensor"),
        (np.ones(2), r"settings\.a\.b\[1\]: got ndarray"),
        (float("nan"), r"settings\.a\.b\[1\]: expected a finite number, got nan"),
        (np.float32("inf"), r"expected a finite number, got inf"),
        ({1: 2}, r"expected string keys, got 1 of int"),
        ({2, 4}, r"got set"),
        (torch.nn.Softplus, r"got type"),
        (Outer, r"got type"),
        (torch.float64, r"got dtype"),
    ],
)
def test_hash_refuses(value, message):
    with pytest.raises(ArtifactError, match=message):
        artifacts.settings_hash("demo", {"a": {"b": [0, value]}}, 1)


# Save and load --------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    tensors = {
        "float64": base,
        "transposed": base.T,
        "shares memory": base[0],
        "grad": torch.randn(2, generator=generator, requires_grad=True),
        "int": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 2),
    }
    array = np.arange(6.0).reshape(2, 3)[:, ::-1]
    record = {"ünïcode": "é", "loss": [0.1, 1e-300], "best": np.float32(0.5), "last": torch.tensor(7), "none": None}
    path = tmp_path / "ä b" / "vae1.v2"
    artifacts.save(path, tensors | {"array": array}, record, provenance={"seed": 1}, **ENTRY)
    loaded = artifacts.load(path, **ENTRY)
    for key, tensor in tensors.items():
        assert loaded.tensors[key].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[key], tensor.detach())
    assert np.array_equal(loaded.tensors["array"].numpy(), array)
    assert loaded.record == {"ünïcode": "é", "loss": [0.1, 1e-300], "best": 0.5, "last": 7, "none": None}
    assert loaded.settings == {"n": 3, "step_size": 0.1, "digits": [2, 4]}
    assert loaded.provenance == {"seed": 1}
    assert loaded.path == path
    assert [file.name for file in path.parent.iterdir()] == ["vae1.v2.safetensors"]
    loaded.tensors["int"].add_(1)  # writable, without a warning


def test_files_are_readable_by_other_programs(tmp_path):
    put(tmp_path / "demo", 5)
    file = stored(tmp_path / "demo")
    assert load_file(file)["x"].tolist() == [5.0] * 4
    document = metadata_of(file)["document"]  # as data/README.md says
    assert document["settings_hash"] == artifacts.settings_hash(**ENTRY)
    assert (document["version"], document["record"]) == (1, {"value": 5})
    assert document["settings"] == {"n": 3, "step_size": 0.1, "digits": [2, 4]}
    mask = os.umask(0)
    os.umask(mask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask


def test_same_content_gives_same_bytes(tmp_path):
    for i in range(8):
        put(tmp_path / str(i), 5)
    assert len({stored(tmp_path / str(i)).read_bytes() for i in range(8)}) == 1


@pytest.mark.parametrize(
    ("tensors", "record", "message"),
    [
        ({"x": 1.0}, {}, r"tensors\['x'\]: expected a tensor or numeric array, got float"),
        ({"x": np.array(["a"])}, {}, r"expected a tensor or numeric array, got <U1"),
        ({}, {"x": torch.ones(2)}, r"record\.x: got Tensor"),
        ({}, {"x": [float("nan")]}, r"record\.x\[0\]: expected a finite number"),
        ({}, {"x": ENDLESS}, r"record\.x\[0\]\[0\].*: nested more than 100 deep"),
    ],
)
def test_save_refuses_what_it_cannot_give_back(tensors, record, message, tmp_path):
    with pytest.raises(ArtifactError, match=message):
        artifacts.save(tmp_path / "demo", tensors, record, **ENTRY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "folder"])
def test_a_damaged_file_is_refused_by_name(damage, tmp_path):
    put(tmp_path / "demo", 5)
    file = stored(tmp_path / "demo")
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes(b"" if damage == "empty" else content[:-3])
    with pytest.raises(ArtifactError, match=file.name) as raised:
        artifacts.load(tmp_path / "demo", name="demo")
    assert all(remedy in str(raised.value) for remedy in ("git restore", "delete", "recompute=True"))


@pytest.mark.parametrize(
    "edited", ["record", "settings", "settings_hash", "provenance", "name", "version", "tensors", "tensors alone"]
)
def test_an_edited_file_is_refused(edited, tmp_path):
    put(tmp_path / "demo", 5)
    file = stored(tmp_path / "demo")
    kept, tensors = metadata_of(file), load_file(file)
    if edited in kept["document"]:
        kept["document"][edited] = {"value": 6}
    else:
        tensors["x"] += 1
    save_file(tensors, file, metadata=None if edited == "tensors alone" else {"lgi": json.dumps(kept)})
    with pytest.raises(ArtifactError, match=r"demo\.safetensors is truncated or was edited"):
        artifacts.load(tmp_path / "demo", name="demo")


@st.composite
def damages(draw):
    """Functions that flip a bit of a file, or cut it, anywhere."""
    position, cut, bit = draw(st.floats(0, 1, exclude_max=True)), draw(st.booleans()), draw(st.integers(0, 7))

    def damage(file):
        content = bytearray(file.read_bytes())
        place = int(position * len(content))
        content[place:] = b"" if cut else bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
        file.write_bytes(content)

    return damage


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damages())
def test_one_flipped_bit_or_a_cut_anywhere_never_changes_what_is_read(tmp_path, damage):
    path = tmp_path / "demo"
    put(path, 5)
    damage(stored(path))
    try:
        value = value_at(path)
    except ArtifactError:
        return
    # What may change unseen is space between JSON tokens.
    assert value == 5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"settings": SETTINGS | {"n": 4}}, r"n is 3, expected 4\."),
        ({"settings": {"n": 3, "step_size": 0.1}}, r"digits is \[2, 4\], expected 'absent'"),
        ({"settings": SETTINGS | {"n": 3.0}}, r"n is 3, expected 3\.0"),
        ({"version": 2}, r"version is 1, expected 2"),
        ({"name": "other"}, r"holds 'demo', expected 'other'"),
    ],
)
def test_other_settings_are_refused_and_named(asked, message, tmp_path):
    put(tmp_path / "demo", 5)
    with pytest.raises(ArtifactError, match=message):
        artifacts.load(tmp_path / "demo", **(ENTRY | asked))


# Interrupted and concurrent writers --------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [None, 1])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_exception_when_the_file_moves_into_place(old, failure, tmp_path, monkeypatch):
    path = tmp_path / "demo"
    if old is not None:
        put(path, old)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Mock(side_effect=failure))
        with pytest.raises((KeyboardInterrupt, ArtifactError)):
            put(path, 2)
    assert not temporary_files(tmp_path)
    assert artifacts.exists(path) == (old is not None)
    assert old is None or value_at(path) == old
    put(path, 3)
    assert value_at(path) == 3


def test_what_a_killed_writer_has_left_goes_and_what_is_being_written_stays(tmp_path):
    left = tmp_path / f".demo.safetensors.{'0' * 32}.tmp"
    left.write_bytes(b"half")
    with artifacts.replacing(tmp_path / "one") as mine:
        put(tmp_path / "demo", 1)
        assert (left.exists(), mine.exists()) == (False, True)


def test_removed(tmp_path):
    put(tmp_path / "demo", 1)
    for _ in range(2):
        artifacts.remove(tmp_path / "demo")
        assert not artifacts.exists(tmp_path / "demo")
        assert not list(tmp_path.iterdir())


WRITER = """
import pathlib, sys, torch
from lgi import artifacts
settings = {"n": 3, "step_size": 0.1, "digits": (2, 4)}
for _ in range(50):
    entry = {"name": "demo", "settings": settings, "version": 1}
    artifacts.save(pathlib.Path(sys.argv[1]), {"x": torch.ones(4)}, {"value": 1}, **entry)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_what_another_writer_takes_away_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    taken, flock = [], artifacts.fcntl.flock

    def late(file, how):
        if not taken:
            taken.extend(tmp_path.glob(".*.tmp"))
            taken[0].unlink()
        flock(file, how)

    replace, others = os.replace, []

    def after_another_writer(source, target):
        if not others:
            others.append("other")
            put(tmp_path / "other", 1)
        replace(source, target)

    monkeypatch.setattr(artifacts.fcntl, "flock", late)
    monkeypatch.setattr(artifacts.os, "replace", after_another_writer)
    put(tmp_path / "demo", 0)
    assert (len(taken), len(others)) == (1, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["demo.safetensors", "other.safetensors"]


@pytest.mark.slow
def test_two_writing_processes_and_a_reader(tmp_path):
    path = tmp_path / "demo"
    put(path, 0)
    seen = []
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) as writer:
        while writer.poll() is None:
            seen.append(value_at(path))
            if 1 in seen:
                put(path, 2)
    assert writer.returncode == 0
    assert set(seen) == {0, 1, 2}
    assert not temporary_files(tmp_path)


def test_a_folder_that_cannot_be_written_is_said_before_computing(folders):
    _, cache = folders
    cache.mkdir()
    (cache / "results").write_text("a file where the folder should be", encoding="utf-8")
    compute = computing(1)
    with pytest.raises(ArtifactError, match=r"cannot write to .*results.*LGI_CACHE"):
        artifacts.load_or_compute("demo", SETTINGS, compute)
    compute.assert_not_called()
    with pytest.raises(ArtifactError, match=r"cannot write .*demo\.safetensors"):
        put(cache / "results" / "demo", 1)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file size to set")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    import resource

    put(tmp_path / "demo", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ArtifactError, match=r"cannot write .*demo.*Free space"):
            artifacts.save(tmp_path / "demo", {"x": torch.ones(4096)}, {"value": 2}, **ENTRY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert value_at(tmp_path / "demo") == 1
    assert not temporary_files(tmp_path)


# load_or_compute --------------------------------------------------------------------------------


def computing(value):
    return Mock(return_value=({"x": np.full(4, float(value))}, {"value": value, "pair": (1, 2)}))


def test_computed_once_then_read(folders):
    _, cache = folders
    compute = computing(1)
    first, second = (artifacts.load_or_compute("demo", SETTINGS, compute, folder="fields") for _ in range(2))
    compute.assert_called_once()
    assert (first.source, second.source) == ("computed", "cache")
    assert first.record == second.record == {"value": 1, "pair": [1, 2]}
    assert torch.equal(first.tensors["x"], second.tensors["x"])
    assert first.path == cache / "fields" / f"demo-{artifacts.settings_hash('demo', SETTINGS, 1)[:16]}"
    assert first.provenance["versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize(
    "change",
    [
        *({"name": "demo2"}, {"version": 2}, {"version": "1"}),
        *({"settings": SETTINGS | {"step_size": 0.1 + 2**-55}}, {"settings": SETTINGS | {"n": 3.0}}),
        *({"settings": SETTINGS | {"digits": (4, 2)}}, {"settings": SETTINGS | {"extra": None}}),
    ],
)
def test_anything_changed_is_computed_beside(change, folders):
    artifacts.load_or_compute("demo", SETTINGS, computing(1))
    arguments = {"name": "demo", "settings": SETTINGS} | change
    changed = artifacts.load_or_compute(compute=computing(2), **arguments)
    assert (changed.source, changed.record["value"]) == ("computed", 2)
    assert artifacts.load_or_compute("demo", SETTINGS, Mock(side_effect=AssertionError)).record["value"] == 1


def test_shipped_is_read_where_it_fits_and_never_overwritten(folders):
    data, cache = folders
    put(data / "results" / "demo", 1)
    before = stored(data / "results" / "demo").read_bytes()
    assert artifacts.load_or_compute("demo", SETTINGS, Mock(side_effect=AssertionError)).source == "shipped"
    assert not cache.exists()
    other = artifacts.load_or_compute("demo", SETTINGS | {"n": 4}, computing(2))
    again = artifacts.load_or_compute("demo", SETTINGS, computing(3), recompute=True)
    assert (other.source, again.source) == ("computed", "computed")
    assert (other.record["value"], again.record["value"]) == (2, 3)
    assert again.path.parent == cache / "results"
    assert stored(data / "results" / "demo").read_bytes() == before


@pytest.mark.parametrize("shipped", [True, False])
def test_damaged_files_are_refused_unless_recomputed(shipped, folders):
    data, _ = folders
    put(data / "results" / "demo", 1)
    settings = SETTINGS if shipped else SETTINGS | {"n": 4}
    file = stored(artifacts.load_or_compute("demo", settings, computing(1)).path)
    assert file.is_relative_to(data) == shipped
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match=f"{file.name} is truncated"):
        artifacts.load_or_compute("demo", settings, Mock(side_effect=AssertionError))
    assert artifacts.load_or_compute("demo", settings, computing(3), recompute=True).record["value"] == 3
    if not shipped:
        assert artifacts.load_or_compute("demo", settings, computing(4)).record["value"] == 3


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_computation_leaves_nothing(failure, folders):
    with pytest.raises(failure):
        artifacts.load_or_compute("demo", SETTINGS, Mock(side_effect=failure))
    assert not [file for file in folders[1].rglob("*") if file.is_file()]


@pytest.mark.parametrize("result", [None, {}, ({}, {}, {}), ({}, [])])
def test_compute_returns_tensors_and_record(result, folders):
    with pytest.raises(ArtifactError, match=r"expected \(tensors, record\)"):
        artifacts.load_or_compute("demo", SETTINGS, lambda: result)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", ".hidden", "a\0"])
def test_names_are_one_component_of_a_path(name, folders):
    with pytest.raises(ArtifactError, match="name: expected letters"):
        artifacts.load_or_compute(name, SETTINGS, lambda: ({}, {}))
    for call in (
        lambda: artifacts.record_results(name, {}),
        lambda: artifacts.record_results("01", {}, run=name),
        lambda: artifacts.read_results("01", run=name),
        lambda: artifacts.save_figure(None, name),
        lambda: artifacts.save_figure(None, "fig1", run=name),
        lambda: artifacts.load_or_compute("demo", SETTINGS, lambda: ({}, {}), folder=name),
    ):
        with pytest.raises(ArtifactError, match="expected letters"):
            call()


# Provenance and runs --------------------------------------------------------------------------------


def test_provenance_says_what_and_not_who():
    found = artifacts.provenance(
        seed=3, command="python /home/some one/x/train.py --out=/data/secret/out a/b ./c / 1/2"
    )
    assert {"date", "python", "platform", "cpu", "cores", "versions", "seed", "command"} <= found.keys()
    assert found["seed"] == 3
    assert found["command"] == "python some one/x/train.py --out=out a/b ./c / 1/2"
    assert found["versions"]["numpy"] == np.__version__
    assert found["date"].endswith("+00:00")
    text = json.dumps(artifacts.provenance())
    for private in (socket.gethostname(), str(artifacts.repository_root()), str(Path.home())):
        assert private not in text
    assert "seed" not in artifacts.provenance()


def test_provenance_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "git_commit" not in artifacts.provenance()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("LGI_RUNS", str(tmp_path))
    return tmp_path


def test_results_come_back(runs):
    results = {"headline": "10.2 %", "mean": torch.tensor(0.5), "n": np.int64(3), "nested": {"x": [1.5, np.float32(2)]}}
    file = artifacts.record_results("04_improvement", results, run="seed=1, a")
    assert file == runs / "seed=1, a" / "results" / "04_improvement.json"
    expected = {"headline": "10.2 %", "mean": 0.5, "n": 3, "nested": {"x": [1.5, 2.0]}}
    assert artifacts.read_results("04_improvement", run="seed=1, a") == expected
    with pytest.raises(ArtifactError, match="run notebook '04_improvement' in run 'default' first"):
        artifacts.read_results("04_improvement")


@pytest.mark.parametrize(
    "results", [{"x": float("nan")}, {"x": torch.ones(2)}, {"x": Path()}, {"headline": 3}, {2: 1}, [1]]
)
def test_results_that_have_no_json_are_refused(results, runs):
    with pytest.raises(ArtifactError, match="results"):
        artifacts.record_results("01", results)
    assert not list(runs.rglob("*.json"))


@pytest.mark.parametrize("content", ["{", "[]", "[" * 99_999])
def test_damaged_results_are_refused(content, runs):
    artifacts.record_results("01", {}).write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match="damaged: delete it and run notebook '01' again"):
        artifacts.read_results("01")


DRAWING = """\
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
from lgi import artifacts, plots
plots.use_style()
figure, (left, right) = plt.subplots(1, 2)
left.plot([0, 1], [0, 1], "o--", label="$z_1^2$ of a line")
left.legend()
figure.colorbar(right.pcolormesh([[0, 1], [2, 3]], rasterized=True))
right.scatter([0.5, 1], [1, 1.5], c=[1, 2], alpha=0.5)
artifacts.save_figure(figure, "fig1", run="smoke")"""


@pytest.mark.slow
def test_figures_depend_neither_on_the_day_nor_on_the_process(runs):
    files = [runs / "smoke" / "figures" / f"fig1.{kind}" for kind in ("png", "pdf")]
    contents = []
    for day, salt in (("0", "1"), ("1000000000", "2")):
        environment = {**os.environ, "SOURCE_DATE_EPOCH": day, "PYTHONHASHSEED": salt}
        subprocess.run([sys.executable, "-c", DRAWING], env=environment, check=True)
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    assert contents[0][0].startswith(b"\x89PNG")
    assert contents[0][1].startswith(b"%PDF")
    assert not temporary_files(runs)
