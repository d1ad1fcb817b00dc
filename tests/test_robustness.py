"""Disks that are full or read-only, no GPU, kills, damaged files, two at once, odd paths.

What a module does about its own files is tested beside it; here are whole calls and commands. Each ends with a message
that says what to do, and leaves no damaged file.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import papermill.iorw
import pytest
import reproduce
import trials
from series import FIGURE

import lgi
from lgi import algorithm1, artifacts, datasets, recipes

ROOT = Path(__file__).resolve().parents[1]

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


# --- a repository that cannot be written -----------------------------------------------------------------------------

IN_A_READ_ONLY_REPOSITORY = """\
import json, sys
from pathlib import Path
import lgi
from lgi import algorithm1, artifacts, datasets, recipes, zoo
root = artifacts.repository_root()
sys.path.insert(0, str(root / "notebooks"))
import reproduce

said = {}
def attempt(name, call):
    try:
        said[name] = f"returned {call()!r}"
    except (ValueError, SystemExit) as error:
        said[name] = str(error)

attempt("models", lambda: [lgi.load_model(name) is None for name in zoo.MODELS])
attempt("codes", lambda: [len(lgi.load_codes(name).z) for name in zoo.CODES])
attempt("compute", lambda: artifacts.load_or_compute("demo", {}, lambda: 1 / 0))
attempt("results", lambda: artifacts.record_results("01_demo", {"a": 1}))
attempt("download", lambda: datasets._download(root / "data" / "nowhere"))
attempt("study", lambda: algorithm1.main(["--model", "vae2", "--samples", "2", "--out", str(root / "study")]))
attempt("reproduce", lambda: reproduce.main([]))
sys.argv = ["recipes", "vae2"]
attempt("training", recipes.main)
print(json.dumps(said))"""


def private_mounts():
    """Command that begins a shell of its own mounts, or None."""
    command = ["unshare", "--mount", *([] if os.name == "posix" and os.geteuid() == 0 else ["--map-root-user"])]
    try:
        subprocess.run([*command, "mount", "--bind", "/tmp", "/tmp"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return command


@pytest.mark.slow
def test_read_only_repository(tmp_path):
    command = private_mounts()
    if command is None:
        pytest.skip("no right to mount anything here")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LGI_")}
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && cd / && exec "$2" -c "$3"'
    arguments = [str(ROOT), sys.executable, IN_A_READ_ONLY_REPOSITORY]
    done = subprocess.run(
        [*command, "sh", "-c", script, "sh", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    # Reading needs no writing.
    assert said["models"] == "returned [False, False, False, False, False]"
    assert said["codes"] == "returned [3934, 3934, 3934]"
    for name, remedy in (("compute", "Set LGI_CACHE to"), ("results", "LGI_RUNS"), ("download", "set LGI_DATA")):
        assert "Read-only file system" in said[name], name
        assert remedy in said[name], name
    assert said["study"] == said["training"] == "2"
    assert said["reproduce"] == "returned 2"
    refusals = [line for line in done.stderr.splitlines() if "Read-only file system" in line]
    remedies = {"algorithm1: ": "--out", "recipes: ": "make it writable", "reproduce: ": "LGI_RUNS"}
    for program, remedy in remedies.items():
        assert [line for line in refusals if program in line and remedy in line], (program, done.stderr)
    assert "Traceback" not in done.stderr


# --- a full disk -----------------------------------------------------------------------------------------------------


def test_series_on_a_full_disk(series, monkeypatch, capsys):
    series.write("01_a", FIGURE)
    real, n_writes = papermill.iorw.LocalHandler.write, [0]

    def write(handler, content, path):
        n_writes[0] += 1
        if n_writes[0] < 4:
            return real(handler, content, path)
        real(handler, content[:100], path)
        raise NO_SPACE

    monkeypatch.setattr(papermill.iorw.LocalHandler, "write", write)
    assert series.run() == 1
    err = capsys.readouterr().err
    assert "FAILED: 01_a.ipynb" in err
    assert f"cannot write to {series.default}: No space left on device. Free space" in err
    assert "LGI_RUNS" in err
    assert [path.name for path in series.default.iterdir() if path.is_file() and path.name != ".lock"] == [
        "summary.json"
    ]
    summary = json.loads((series.default / "summary.json").read_text(encoding="utf-8"))
    assert [record["status"] for record in summary["notebooks"]] == ["failed"]


@pytest.mark.parametrize("error", [NO_SPACE, READ_ONLY], ids=["full", "read-only"])
def test_series_whose_results_cannot_be_written(series, monkeypatch, capsys, error):
    def copyfile(source, target):
        Path(target).write_text("dr", encoding="utf-8")
        raise error

    def write_text(path, text, **options):
        if "summary.json" in path.name:
            raise error
        return real(path, text, **options)

    series.write("01_a", FIGURE)
    # Figures first: a run without fault, but for the last step.
    series.figures.mkdir()
    (series.figures / "01_a_0.png").write_text("of yesterday", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(reproduce.shutil, "copyfile", copyfile)
        assert series.run("commit") == 1
    out, err = capsys.readouterr()
    assert f"written to {series.default}" in out
    assert err.count("\n") == 1
    assert err.startswith(f"reproduce: [Errno {error.errno}] {error.strerror}")
    assert "Free space" in err
    assert [(path.name, path.read_text(encoding="utf-8")) for path in series.figures.iterdir()] == [
        ("01_a_0.png", "of yesterday")
    ]

    monkeypatch.setattr(reproduce, "execute", lambda *_: 1 / 0)
    real = Path.write_text
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_text)
        assert series.run() == 1
    out, err = capsys.readouterr()
    assert "01_a" in out
    assert f"cannot write to {series.default / 'summary.json'}: {error.strerror}" in err
    # What went wrong before is not lost.
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err
    assert trials.temporary_files(series.default) == []


@pytest.mark.parametrize("error", [READ_ONLY, NO_SPACE, PermissionError(errno.EACCES, "Permission denied")])
def test_folder_of_runs_that_cannot_be_locked(series, monkeypatch, capsys, error):
    series.write("01_a")
    monkeypatch.setattr(reproduce.filelock.FileLock, "acquire", Mock(side_effect=error))
    assert series.run() == 2
    assert f"reproduce: cannot write to {series.default}: {error.strerror}" in capsys.readouterr().err


# --- training that is stopped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (artifacts.ArtifactError("cannot write x: No space left"), 2, "recipes: cannot write x: No space left"),
        (datasets.DatasetError("MNIST is not on disk"), 2, "recipes: MNIST is not on disk"),
    ],
)
def test_command_that_trains_says_why_it_stops(tmp_path, monkeypatch, capsys, error, status, message):
    monkeypatch.setattr(artifacts, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(recipes, "train_or_load", Mock(side_effect=error))
    monkeypatch.setattr("sys.argv", ["lgi.recipes", "vae2"])
    with pytest.raises(SystemExit) as end:
        recipes.main()
    assert end.value.code == status
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("name", trials.TRIALS)
def test_a_few_of_the_trials(name):
    """Each kind of fault, made for real; ``python tests/trials.py`` makes as many as one likes."""
    n = 1
    command = [sys.executable, trials.__file__, "--only", name, "-n", str(n), "--seed", str(len(name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if "not made: " in done.stdout:
        pytest.skip(done.stdout.partition("not made: ")[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name}: {n} tried, all survived" in done.stdout


# --- damaged files that are shipped ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"version https://git-lfs"), "truncated or was edited"),
        (lambda path: path.write_bytes(b"<<<<<<< HEAD\n" + path.read_bytes()), "truncated or was edited"),
        (Path.unlink, "is missing"),
    ],
    ids=["pointer", "merge conflict", "no file"],
)
def test_damaged_model_is_refused_by_every_call(tmp_path, monkeypatch, capsys, damage, message):
    shutil.copytree(artifacts.data_folder() / "models", tmp_path / "models")
    monkeypatch.setattr(artifacts, "data_folder", lambda: tmp_path)
    file = tmp_path / "models" / "vae2.safetensors"
    damage(file)
    for call in (lgi.load_model, lgi.load_codes):
        with pytest.raises(artifacts.ArtifactError, match=message) as refusal:
            call("vae2")
        assert str(file) in str(refusal.value)
        assert "restore it (git restore, or reinstall lgi)" in str(refusal.value)
    with pytest.raises(SystemExit) as end:
        algorithm1.main(["--model", "vae2", "--samples", "2", "--out", str(tmp_path / "study")])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "study").exists()
    # The others are not concerned.
    assert len(lgi.load_codes("vae1").z) == 3934


# --- no GPU ----------------------------------------------------------------------------------------------------------


def test_no_gpu(tmp_path):
    """Also on a machine that has one, with the GPU hidden: what a machine without a driver sees."""
    code = (
        "import sys, lgi, torch\nfrom lgi import algorithm1\n"
        "assert lgi.load_model('vae2', 'auto').decoder.mean_net is not None\n"
        "assert next(lgi.load_model('vae2', 'auto').parameters()).device.type == 'cpu'\n"
        "for load in (lgi.load_model, lgi.load_codes):\n"
        "    try:\n        load('vae2', 'cuda')\n    except ValueError as error:\n        print(error)\n"
        "algorithm1.main(['--model', 'vae2', '--device', 'cuda:0', '--out', sys.argv[1]])"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, str(tmp_path / "study")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout.count('device \'cuda\' is not available here; use "auto" or "cpu"') == 2
    assert done.stderr.startswith("python -m lgi.algorithm1: device 'cuda:0' is not available here")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "study").exists()


# --- two at once -----------------------------------------------------------------------------------------------------

# In place of Python: makes an environment that consists of itself, and installs nothing, slowly.
SLOW_PYTHON = """\
#!/bin/sh
case "$1 $2 ${3:-}" in
"-m pip --version") test -e "$(dirname "$0")/pip" ;;
"-m pip install") echo install >>"$LOG"; sleep 0.7; echo installed >>"$LOG" ;;
"-m venv "*) echo venv >>"$LOG"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; sleep 0.3; touch "$3/bin/pip" ;;
*) exec "$REAL" "$@" ;;
esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("left", ["nothing", "half of .venv"])
def test_two_that_install_at_once(tmp_path, left):
    project, log = tmp_path / "x y ü", tmp_path / "log"
    project.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, project)
    python = tmp_path / "python"
    python.write_text(SLOW_PYTHON, encoding="utf-8")
    python.chmod(0o755)
    if left == "half of .venv":
        (project / ".venv" / "bin").mkdir(parents=True)
        shutil.copy(python, project / ".venv" / "bin" / "python")
    environment = os.environ | {"LOG": str(log), "REAL": sys.executable}
    command = ["make", "install", f"PYTHON={python}", "INSTALLER=pip"]
    both = [subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    # What is locked, and lgi itself.
    assert log.read_text(encoding="utf-8").split() == ["venv", *["install", "installed"] * 2]
    assert subprocess.run([*command, "--question"], cwd=project, env=environment, check=False).returncode == 0
