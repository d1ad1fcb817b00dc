"""What an installation gets: from a wheel, without the repository; by conda; by the lock; and of which version."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from datetime import date
from email.parser import HeaderParser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import lgi
from lgi import zoo

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# --- a wheel ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a source distribution, as pip and uv build it; with the build backend at hand, no network."""
    folder = tmp_path_factory.mktemp("dist")

    def build(kind, source):
        command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    build("sdist", ROOT)
    (archive,) = folder.glob("*.tar.gz")
    # Not tarfile: before 3.11.4 it has no filter, and after 3.12 it warns without.
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(folder)], check=True)
    build("wheel", folder / archive.name.removesuffix(".tar.gz"))
    (found,) = folder.glob("*.whl")
    return found


def test_wheel_holds_the_package_the_models_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = {name for name in content.namelist() if not name.endswith("/")}
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(content.read(metadata).decode())
    package = {name for name in names if not name.startswith(metadata.removesuffix("METADATA"))}
    kept = (path for path in (ROOT / "lgi").rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    expected = {path.relative_to(ROOT).as_posix() for path in kept}
    for kind in ("models", "results"):
        expected |= {f"lgi/_shipped/{kind}/{path.name}" for path in (ROOT / "data" / kind).iterdir()}
    assert package == expected
    assert "lgi/py.typed" in package
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 5e6
    assert headers["Version"] == lgi.__version__
    assert headers["Requires-Python"] == PROJECT["requires-python"]
    required = {Requirement(entry).name for entry in headers.get_all("Requires-Dist") if "extra ==" not in entry}
    assert required == {Requirement(entry).name for entry in PROJECT["dependencies"]}


INSTALLED = """\
import json
import sys
from pathlib import Path
import lgi
import matplotlib
import torch
from lgi import artifacts, plots, zoo
assert Path(lgi.__file__).is_relative_to(sys.argv[1]), lgi.__file__
assert artifacts.repository_root() is None
models = {name: lgi.load_model(name) for name in zoo.MODELS}
codes = {name: lgi.load_codes(name) for name in zoo.CODES}
metric = lgi.PullbackMetric(models["vae2"].decoder)
result = lgi.shorten(metric, codes["vae2"].z[:1], codes["vae2"].z[1:2])
study = lgi.worst_case_improvement(metric, 5, progress=False)
matplotlib.use("Agg")
plots.use_style()
with torch.no_grad():
    probability = models["logistic_regression"](models["vae1"].decoder(codes["vae1"].z)[0])
digit = models["logistic_regression"].classes[probability.argmax(1)]
print(json.dumps({
    "codes": {name: list(found.z.shape) for name, found in codes.items()},
    "improvement": result.improvement.item(),
    "samples": len(study),
    "accuracy": (digit == codes["vae1"].label).double().mean().item(),
    "style": matplotlib.rcParams["image.cmap"],
}))"""


@pytest.mark.slow
def test_wheel_works_without_the_repository(wheel, tmp_path):
    site, empty = tmp_path / "s ité", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)
    environment = {"PYTHONPATH": str(site), "HOME": str(empty), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def python(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)

    done = python("-c", INSTALLED, str(site))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["codes"] == {name: [3934, 2] for name in zoo.CODES}
    assert 0 <= found["improvement"] < 1
    assert found["samples"] == 5
    # Reconstructions keep their digit: models, codes and regression are those that belong together.
    assert found["accuracy"] > 0.8
    assert found["style"] == "mako"

    done = python("-m", "lgi.algorithm1", "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "Algorithm 1 on a shipped model" in done.stdout
    # matplotlib and the like keep things below the home folder; lgi leaves nothing.
    assert [path.name for path in empty.iterdir() if not path.name.startswith(".")] == []


# --- conda and the lock ----------------------------------------------------------------------------------------------


def test_conda_environment_installs_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [Requirement(entry) for entry in environment["dependencies"] if isinstance(entry, str)]
    (nested,) = [entry for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert sorted(requirement.name for requirement in plain) == ["pip", "python"]
    (python,) = (requirement.specifier for requirement in plain if requirement.name == "python")
    minors = [f"3.{minor}" for minor in range(8, 30) if python.contains(f"3.{minor}")]
    assert minors == ["3.11", "3.12", "3.13"]
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(minor) for minor in minors)
    # The lock holds the same versions for both ways of installing; anything else would be a second list to keep. lgi
    # itself, a folder without a hash, is installed after it.
    assert nested == {"pip": ["--require-hashes", "--requirement requirements.lock"]}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "conda env create -f environment.yml && conda run -n lgi pip install --no-deps --editable ." in readme


def test_one_click_starts_do_what_readme_says():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] == "make install TORCH=cpu"
    assert all((ROOT / file).exists() for file in container["customizations"]["codespaces"]["openFiles"])
    after = ROOT / "postBuild"
    assert os.access(after, os.X_OK)
    assert after.read_text(encoding="utf-8").endswith("pip install --no-deps --editable .\n")


def test_lock_pins_every_direct_dependency():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    lines = [line.split(" --hash=") for line in text.replace(" \\\n    ", " ").splitlines()]
    wrong = [line for line, *_ in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;,*]+( ?; .+)?", line)]
    # Without hashes for each, pip and uv refuse all of it.
    wrong += [line for line, *hashes in lines if not hashes]
    wrong += [found for _, *hashes in lines for found in hashes if not re.fullmatch(r"sha256:[0-9a-f]{64}", found)]
    assert wrong == []
    locked = {}
    for line, *_ in lines:
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        locked.setdefault(canonicalize_name(requirement.name), []).append(pin.version)
    extras = PROJECT["optional-dependencies"]
    # "dev" is what make installs; the others that it does not name are nobody's.
    entries = [entry for name, extra in extras.items() if name != "benchmarks" for entry in extra]
    direct = [Requirement(entry) for entry in PROJECT["dependencies"] + entries]
    for requirement in direct:
        if requirement.name == PROJECT["name"]:
            continue
        versions = locked.get(canonicalize_name(requirement.name), [])
        assert versions, f"{requirement.name} is not locked"
        assert all(requirement.specifier.contains(version) for version in versions), f"{requirement} against {versions}"


# --- the version -----------------------------------------------------------------------------------------------------


def test_one_version_everywhere():
    assert str(Version(lgi.__version__)) == lgi.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == lgi.__version__
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    released = [heading for heading in headings if heading != "[Unreleased]"]
    assert released[0] == f"[{lgi.__version__}] - {citation['date-released']}"
    found = [re.fullmatch(r"\[(\S+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in released]
    assert all(found)
    versions, days = [Version(match[1]) for match in found], [date.fromisoformat(match[2]) for match in found]
    assert versions == sorted(set(versions), reverse=True)
    assert days == sorted(days, reverse=True)
