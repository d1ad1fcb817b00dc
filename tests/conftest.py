"""What all tests share: where files go, which data are there, one thread."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from lgi import artifacts, datasets

torch.set_num_threads(1)

# A shared machine can stall any example; the time limit would then fail tests that are right.
settings.register_profile("lgi", deadline=None)
settings.load_profile("lgi")


def _missing_data(item: pytest.Item) -> str | None:
    looked = " or ".join(str(folder) for folder in artifacts.raw_data_folders())
    if item.get_closest_marker("needs_mnist") and not datasets.has_mnist():
        return f"no MNIST/raw in {looked} (LGI_DATA names another folder)"
    if item.get_closest_marker("needs_vgg") and not any(
        file for folder in artifacts.raw_data_folders() for file in folder.glob("vgg19/*")
    ):
        return f"no VGG-19 weights vgg19/* in {looked} (LGI_DATA names another folder)"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := _missing_data(item):
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def scratch_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs and cache of the tests, and of the processes they start, go into a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LGI_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("LGI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def mnist_folder() -> Path:
    """Folder that holds MNIST/raw; skips the test where there is none."""
    folder = datasets.find_mnist()
    if folder is None:
        pytest.skip("no MNIST on disk (LGI_DATA or data/)")
    return folder
