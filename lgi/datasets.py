"""Images of digits as tensors: MNIST from disk, or scikit-learn's 8x8 digits, which need no file.

Both come from `load` as `ImageData`, with the digits and one of three fixed splits asked for by name; what reads them
from their source is an entry of ``READERS``. Nothing here touches the network unless ``download=True`` is given and
MNIST is not on disk.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Collection
from http.client import HTTPException
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from lgi import artifacts
from lgi.checks import one_of

Split = Literal["train", "validation", "test"]

DIGITS = (2, 4, 5, 7)
"""The paper's digits (Fig. 1, App. D)."""

_N_VALIDATION = 5000
# Any constant; changing it changes every trained model and its held-out numbers.
_SPLIT_SEED = 20210507

_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class DatasetError(ValueError):
    """Data that are not there, or damaged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageData:
    """Images of one split.

    Parameters
    ----------
    images : Tensor, shape (n, 1, 28, 28), float32
        Values in [0, 1].
    label : Tensor, shape (n,), int64
        Digit of each image.
    index : Tensor, shape (n,), int64
        Ascending position in the data as published: in MNIST's official training set for "train" and "validation", in
        its official test set for "test"; in all 1797 images for optdigits.
    """

    images: Tensor
    label: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.label)


def load(name: str, split: Split, *, digits: Collection[int] = DIGITS, download: bool = False) -> ImageData:
    """Return a split of a data set by name.

    Parameters
    ----------
    name : {"mnist", "optdigits"}
        Data set: MNIST (LeCun, Cortes & Burges), from disk; or scikit-learn's ``load_digits`` (1797 real 8x8 digits of
        NIST), resized to 28x28, for trying out and for tests: no number of the paper comes from it.
    split : {"train", "validation", "test"}
        Of MNIST, "test" is the official test set (10 000 images), "validation" a fixed draw of 5000 images of the
        official training set and "train" the other 55 000. Of optdigits, 1257, 180 and 360 images, fixed, stratified by
        digit. The same whatever the digits.
    digits : collection of int
        Digits to keep; default the paper's. Their order does not matter: images keep the order of the data set.
    download : bool
        Download MNIST if it is not on disk, into the last of `lgi.artifacts.raw_data_folders`.

    Returns
    -------
    ImageData
        New tensors with each call.

    Raises
    ------
    DatasetError
        If MNIST is nowhere, a raw file has another md5 than published, or the download fails.
    ValueError
        If an argument is none of the above.
    """
    one_of(READERS, name=name)
    one_of(get_args(Split), split=split)
    chosen = set(digits) if isinstance(digits, Collection) else set()
    if not chosen or len(chosen) < len(digits) or not chosen <= set(range(10)):
        raise ValueError(f"digits: expected different integers of 0 to 9, at least one, got {digits!r}")
    pixels, label, index = READERS[name](split, download)
    keep = torch.isin(label, torch.tensor(sorted(digits)))
    images = pixels[keep].unsqueeze(1)
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    return ImageData(images=images, label=label[keep], index=index[keep])


# ---------------------------------------------------------------------------------------------------------------------
# MNIST
# ---------------------------------------------------------------------------------------------------------------------


def _mnist_files(root: Path) -> list[Path]:
    return [root / "MNIST" / "raw" / name for name in _MNIST_MD5]


def find_mnist() -> Path | None:
    """First of `lgi.artifacts.raw_data_folders` whose ``MNIST/raw`` holds the four raw files, None if there is none.

    The contents are checked on loading only.
    """
    folders = artifacts.raw_data_folders()
    return next((folder for folder in folders if all(file.is_file() for file in _mnist_files(folder))), None)


def has_mnist() -> bool:
    """Whether MNIST is on disk."""
    return find_mnist() is not None


def _check_md5(file: Path, remedy: str) -> None:
    from torchvision.datasets.utils import calculate_md5

    md5 = calculate_md5(file)
    if md5 != _MNIST_MD5[file.name]:
        raise DatasetError(f"{file} is damaged: expected md5 {_MNIST_MD5[file.name]}, got {md5}. {remedy}")


def _download(root: Path) -> None:
    """Download the four files into root, each moved into place only when all are complete and checked."""
    from torchvision.datasets import MNIST

    folder = root / "MNIST"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            MNIST(temporary, download=True)
            for file in _mnist_files(Path(temporary)):
                _check_md5(file, "Try the download again.")
            (folder / "raw").mkdir(exist_ok=True)
            for file in _mnist_files(Path(temporary)):
                file.replace(folder / "raw" / file.name)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DatasetError(
            f"MNIST could not be downloaded into {folder}: {error}\nPut {', '.join(_MNIST_MD5)} into a folder "
            "MNIST/raw and set LGI_DATA to the folder that holds it; or use optdigits, which needs no file."
        ) from error


def _mnist(split: Split, download: bool) -> tuple[Tensor, Tensor, Tensor]:
    # Not the class MNIST: it prefers a file processed/training.pt of old torchvision versions, which nobody verifies.
    from torchvision.datasets.mnist import read_image_file, read_label_file

    found = find_mnist()
    folders = artifacts.raw_data_folders()
    if found is None and download:
        found = folders[-1]
        _download(found)
    if found is None:
        missing = "\n".join(f"  {file}" for folder in folders for file in _mnist_files(folder) if not file.is_file())
        raise DatasetError(
            f"MNIST is not on disk. Looked for, and did not find:\n{missing}\nSet LGI_DATA to the folder that holds "
            "MNIST/raw, or give download=True, or use optdigits, which needs no file."
        )
    for file in _mnist_files(found):
        _check_md5(file, "Delete it and load again with download=True, or copy it from another source.")
    start = found / "MNIST" / "raw" / ("t10k" if split == "test" else "train")
    pixels, label = read_image_file(f"{start}-images-idx3-ubyte"), read_label_file(f"{start}-labels-idx1-ubyte")
    if split == "test":
        index = torch.arange(len(label))
    else:
        order = torch.randperm(len(label), generator=torch.Generator().manual_seed(_SPLIT_SEED))
        index = (order[:_N_VALIDATION] if split == "validation" else order[_N_VALIDATION:]).sort().values
    return pixels[index], label[index], index


# ---------------------------------------------------------------------------------------------------------------------
# optdigits
# ---------------------------------------------------------------------------------------------------------------------


def _optdigits(split: Split, download: bool) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001 - there is nothing to
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    label = torch.from_numpy(source.target).long()
    eighths = torch.from_numpy(source.images).float().unsqueeze(1) / 16
    # Bilinear, because its weights are convex: bicubic overshoots [0, 1], and clamping would flatten the strokes.
    pixels = torch.nn.functional.interpolate(eighths, size=(28, 28), mode="bilinear").squeeze(1).clamp_(0, 1)
    rest, test = train_test_split(range(len(label)), test_size=360, random_state=_SPLIT_SEED, stratify=label)
    train, validation = train_test_split(rest, test_size=180, random_state=_SPLIT_SEED, stratify=label[rest])
    index = torch.tensor(sorted({"train": train, "validation": validation, "test": test}[split]))
    return pixels[index], label[index], index


READERS: dict[str, Callable[[Split, bool], tuple[Tensor, Tensor, Tensor]]] = {"mnist": _mnist, "optdigits": _optdigits}
"""Data sets by name: of a split, new tensors of pixels (n, 28, 28) in [0, 1] or uint8, label (n,) and index (n,)."""
