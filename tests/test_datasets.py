"""lgi.datasets: the right images in the right range, fixed splits, and nothing damaged or partial."""

import gzip
import hashlib
import struct
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from lgi import datasets
from lgi.datasets import DatasetError

N_TRAIN, N_TEST = 6000, 40


def raw_files():
    """MNIST's four files in its format: image i has the digit i % 10 and its pixel (0, 0) is i % 256."""
    files = {}
    for part, n in (("train", N_TRAIN), ("t10k", N_TEST)):
        pixels = np.zeros((n, 28, 28), dtype=np.uint8)
        pixels[:, 0, 0] = np.arange(n) % 256
        pixels[:, 27, 26] = 255
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">4i", 0x803, n, 28, 28) + pixels.tobytes()
        labels = (np.arange(n) % 10).astype(np.uint8)
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">2i", 0x801, n) + labels.tobytes()
    return files


@pytest.fixture
def synthetic(tmp_path, monkeypatch):
    """A small stand-in for MNIST in a folder whose name holds a space and a non-ASCII letter, and no other MNIST."""
    files = raw_files()
    monkeypatch.setattr(
        datasets, "_MNIST_MD5", {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    )
    root = tmp_path / "dät a"
    write(root, files)
    monkeypatch.setattr(datasets.artifacts, "raw_data_folders", lambda: [tmp_path / "first", root])
    return root


def write(root, files):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)


def file_names(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


# Reading --------------------------------------------------------------------------------


def test_pixels_labels_and_indices_belong_together(synthetic):
    data = datasets.load("mnist", "test", digits=(7, 2))
    assert data.label.tolist() == [2, 7] * 4
    assert data.index.tolist() == [2, 7, 12, 17, 22, 27, 32, 37]
    assert data.images.shape == (8, 1, 28, 28)
    assert (data.images.dtype, data.label.dtype, data.index.dtype) == (torch.float32, torch.int64, torch.int64)
    assert torch.equal(data.images[:, 0, 0, 0], data.index.float() / 255)
    assert torch.equal(data.images[:, 0, 27, 26], torch.ones(8))
    assert len(data) == 8


def test_splits_partition_the_training_set_whatever_the_digits(synthetic):
    train, validation = (datasets.load("mnist", s, digits=range(10)).index for s in ("train", "validation"))
    assert len(validation) == 5000
    assert torch.cat([train, validation]).sort().values.tolist() == list(range(N_TRAIN))
    for split, index in (("train", train), ("validation", validation)):
        assert datasets.load("mnist", split, digits=(2, 4)).index.tolist() == [
            i for i in index.tolist() if i % 10 in (2, 4)
        ]


@pytest.mark.parametrize("name", datasets.READERS)
def test_result_is_the_callers_own(synthetic, name):
    first = datasets.load(name, "test")
    for tensor in (first.images, first.label, first.index):
        tensor.fill_(3)
    second = datasets.load(name, "test")
    assert second.images.max() <= 1
    assert 3 not in second.label
    assert second.index.unique().numel() == len(second)


def test_the_first_folder_that_has_it(synthetic, tmp_path):
    assert datasets.find_mnist() == synthetic
    write(tmp_path / "first", raw_files())
    assert datasets.find_mnist() == tmp_path / "first"


def test_read_again_after_a_change(synthetic):
    datasets.load("mnist", "train")
    file = synthetic / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="train-images-idx3-ubyte is damaged"):
        datasets.load("mnist", "train")


@pytest.mark.parametrize("name", list(raw_files()))
def test_corruption_names_file_and_both_checksums(name, synthetic):
    file = synthetic / "MNIST" / "raw" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    got = hashlib.md5(content).hexdigest()
    with pytest.raises(DatasetError) as raised:
        datasets.load("mnist", "test")
    for part in (str(file), f"expected md5 {datasets._MNIST_MD5[name]}", f"got {got}", "Delete it", "download=True"):
        assert part in str(raised.value)


def test_nothing_of_an_old_torchvision_is_read(synthetic):
    # torchvision.datasets.MNIST would take these instead of the raw files.
    processed = synthetic / "MNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.full((10, 28, 28), 9, dtype=torch.uint8), torch.full((10,), 2)), processed / name)
    assert datasets.load("mnist", "test").index[-1] == 37


@pytest.mark.parametrize("missing", list(raw_files()))
def test_mnist_nowhere_says_where_it_looked_and_what_to_do(missing, synthetic):
    (synthetic / "MNIST" / "raw" / missing).unlink()
    assert not datasets.has_mnist()
    with pytest.raises(DatasetError) as raised:
        datasets.load("mnist", "test")
    message = str(raised.value)
    for part in (str(synthetic / "MNIST" / "raw" / missing), "LGI_DATA", "download=True", "optdigits"):
        assert part in message
    # All four in the first folder, the one in the second.
    assert message.count("ubyte") == 5


# Download --------------------------------------------------------------------------------


@pytest.fixture
def mirror(synthetic, monkeypatch):
    """The four files where torchvision downloads from; nothing on disk where MNIST is looked for."""
    from torchvision.datasets import MNIST, utils

    served = {f"{name}.gz": gzip.compress(content) for name, content in raw_files().items()}
    for file in (synthetic / "MNIST" / "raw").iterdir():
        file.unlink()

    def download_url(url, root, filename, md5):
        assert url == f"https://mirror/{filename}"
        (Path(root) / filename).write_bytes(served[filename])

    monkeypatch.setattr(MNIST, "mirrors", ["https://mirror/"])
    monkeypatch.setattr(MNIST, "resources", [(name, None) for name in served])
    monkeypatch.setattr(utils, "download_url", download_url)


@pytest.mark.parametrize("there", [[], ["t10k-labels-idx1-ubyte"]])
def test_download_goes_into_the_last_folder_and_completes_what_is_there(mirror, synthetic, there):
    write(synthetic, {name: raw_files()[name] for name in there})
    assert len(datasets.load("mnist", "test", download=True)) == 16
    assert file_names(synthetic) == sorted(f"MNIST/raw/{name}" for name in raw_files())
    assert len(datasets.load("mnist", "test")) == 16


def test_download_is_not_tried_where_mnist_is(synthetic, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", [])
    assert len(datasets.load("mnist", "test", download=True)) == 16


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt(), URLError("no network"), IncompleteRead(b""), OSError(28, "No space left")]
)
def test_an_interrupted_download_leaves_nothing(failure, mirror, synthetic, monkeypatch):
    import torchvision.datasets.mnist as torchvision_mnist

    fetch, calls = torchvision_mnist.download_and_extract_archive, []

    def fetch_and_fail(*arguments, **keywords):
        calls.append(keywords["filename"])
        if len(calls) == 3:
            raise failure
        fetch(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(torchvision_mnist, "download_and_extract_archive", fetch_and_fail)
        with pytest.raises((KeyboardInterrupt, DatasetError)) as raised:
            datasets.load("mnist", "test", download=True)
    assert len(calls) == 3
    assert file_names(synthetic) == []
    if raised.type is DatasetError:
        assert "could not be downloaded" in str(raised.value)
        assert "LGI_DATA" in str(raised.value)
    assert len(datasets.load("mnist", "test", download=True)) == 16


def test_a_download_of_something_else_is_refused(mirror, synthetic, monkeypatch):
    monkeypatch.setitem(datasets._MNIST_MD5, "t10k-images-idx3-ubyte", "0" * 32)
    with pytest.raises(DatasetError, match="t10k-images-idx3-ubyte is damaged"):
        datasets.load("mnist", "test", download=True)
    assert file_names(synthetic) == []


# The real data --------------------------------------------------------------------------------


@pytest.mark.needs_mnist
def test_real_mnist():
    parts = {split: datasets.load("mnist", split, digits=range(10)) for split in ("train", "validation", "test")}
    assert {split: len(data) for split, data in parts.items()} == {"train": 55000, "validation": 5000, "test": 10000}
    # Published counts of the digits 0 to 9 in the official training and test sets.
    counts = torch.bincount(parts["train"].label) + torch.bincount(parts["validation"].label)
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    counts = torch.bincount(parts["test"].label)
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # Published mean and standard deviation of the training pixels.
    pixels = torch.cat([parts["train"].images, parts["validation"].images])
    assert pixels.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert pixels.std().item() == pytest.approx(0.3081, abs=1e-4)
    assert (pixels.min(), pixels.max()) == (0, 1)


@pytest.mark.needs_mnist
def test_real_mnist_equals_torchvisions():
    from torchvision.datasets import MNIST

    official = MNIST(datasets.find_mnist(), train=True)
    data = datasets.load("mnist", "validation")
    assert set(data.label.tolist()) == {2, 4, 5, 7}
    assert torch.equal(official.targets[data.index], data.label)
    torch.testing.assert_close(data.images[:, 0], official.data[data.index] / 255)
    # The split may never change: the shipped models were trained on the rest.
    assert hashlib.sha256(data.index.numpy().astype("<i8").tobytes()).hexdigest()[:16] == "11972b02b2e941c7"


# optdigits --------------------------------------------------------------------------------


def test_optdigits_is_split_fixed_and_stratified():
    parts = {split: datasets.load("optdigits", split, digits=range(10)) for split in ("train", "validation", "test")}
    assert {split: len(data) for split, data in parts.items()} == {"train": 1257, "validation": 180, "test": 360}
    index = torch.cat([data.index for data in parts.values()])
    assert index.sort().values.tolist() == list(range(1797))
    for data in parts.values():
        share = torch.bincount(data.label) / len(data)
        assert (share - 0.1).abs().max() < 0.005
        assert torch.equal(data.index, data.index.sort().values)
    digest = hashlib.sha256(index.numpy().astype("<i8").tobytes()).hexdigest()[:16]
    assert digest == "0429782ab328d9ee"


def test_optdigits_is_the_source_resized():
    from sklearn.datasets import load_digits

    source = load_digits()
    data = datasets.load("optdigits", "test", download=True)
    assert set(data.label.tolist()) == {2, 4, 5, 7}
    assert data.label.tolist() == source.target[data.index].tolist()
    assert data.images.shape == (len(data), 1, 28, 28)
    assert data.images.dtype == torch.float32
    assert data.images.min() >= 0
    assert data.images.max() <= 1
    # By hand: pixel 5 of 28 lies at (5 + 1/2) 8/28 - 1/2 = 15/14 of 8, so between 1 and 2 with weights 13/14, 1/14.
    weights = torch.zeros(8, dtype=torch.float64)
    weights[1], weights[2] = 13 / 14, 1 / 14
    original = torch.from_numpy(source.images[data.index]) / 16
    expected = torch.einsum("i,nij,j->n", weights, original, weights)
    torch.testing.assert_close(data.images[:, 0, 5, 5].double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(data.images[:, 0, 0, 0].double(), original[:, 0, 0], atol=1e-6, rtol=0)


# The door --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", datasets.READERS)
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"split": "val"}, "split must be one of .*validation.*, got 'val'"),
        ({"digits": ()}, r"digits: expected different integers of 0 to 9, at least one, got \(\)"),
        ({"digits": (2, 2)}, "digits: expected"),
        ({"digits": (10,)}, "digits: expected"),
        ({"digits": "24"}, "digits: expected"),
        ({"digits": 2}, "digits: expected"),
    ],
)
def test_wrong_requests_are_named(name, request_, message, synthetic):
    with pytest.raises(ValueError, match=message):
        datasets.load(name, **({"split": "test"} | request_))


def test_unknown_data_set():
    with pytest.raises(ValueError, match=r"name must be one of mnist, .*, got 'cifar'"):
        datasets.load("cifar", "test")
