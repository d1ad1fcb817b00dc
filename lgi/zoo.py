"""The shipped models and latent codes, ready for use."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args, overload

import torch
from torch import Tensor

from lgi import artifacts
from lgi.checks import one_of
from lgi.features import ClassifierOutput, LogisticRegression
from lgi.models import GAN, VAE, Architecture, ConstantStd, Decoder, RBFPrecision, fuse, pick_device

VAES = ("vae1", "vae2")
CODES = (*VAES, "gan")
MODELS = (*CODES, "logistic_regression")

Device: TypeAlias = str | torch.device
Std: TypeAlias = Literal["rbf", "constant"]


@dataclass(frozen=True)
class Codes:
    """Latent codes of test images.

    Attributes
    ----------
    z : Tensor, shape (n, d)
        Means of q(z | x); of a model without encoder, what :func:`lgi.invert` finds.
    std : Tensor, shape (n, d)
        Standard deviations of q(z | x); 0 without encoder.
    label : Tensor, shape (n,), int64
        Digit of each image.
    index : Tensor, shape (n,), int64
        Position of each image in the official test set.
    """

    z: Tensor
    std: Tensor
    label: Tensor
    index: Tensor


@overload
def load_model(name: Literal["vae1", "vae2"], device: Device = "cpu", *, std: Std = "rbf") -> VAE: ...
@overload
def load_model(name: Literal["gan"], device: Device = "cpu") -> GAN: ...
@overload
def load_model(
    name: Literal["logistic_regression"], device: Device = "cpu", *, output: ClassifierOutput = "probabilities"
) -> LogisticRegression: ...
def load_model(
    name: str, device: Device = "cpu", *, std: Std | None = None, output: ClassifierOutput | None = None
) -> VAE | GAN | LogisticRegression:
    """Shipped model: "vae1", "vae2", "gan" or "logistic_regression", trained on MNIST digits 2, 4, 5, 7.

    Parameters
    ----------
    name : str
        Which one.
    device : str or torch.device
        Where to put it; ``"auto"`` is the GPU when there is one.
    std : {"rbf", "constant"}, optional
        Variance model of a VAE's decoder: the RBF precision network (the paper's, the default), or the one constant
        it was trained with.
    output : {"probabilities", "log_probabilities", "logits"}, optional
        What the logistic regression returns; the paper's map is the probabilities, the default.

    Returns
    -------
    VAE, GAN or LogisticRegression
        Fused, frozen and in eval mode: ``lgi.PullbackMetric(vae.decoder)`` and ``lgi.PullbackMetric(gan.generator)``
        are ready.

    Raises
    ------
    ValueError
        If there is no such model, it has no such option, or the device is not available.
    lgi.artifacts.ArtifactError
        If the file is missing or damaged.
    """
    if name not in MODELS:
        raise ValueError(f"there is no shipped model named {name!r}; there are {', '.join(MODELS)}")
    if (std is not None and name not in VAES) or (output is not None and name != "logistic_regression"):
        raise ValueError("std is an option of the VAEs, output one of the logistic regression; the GAN has no options")
    artifact = _shipped(name)
    if name == "logistic_regression":
        return restore_logistic_regression(artifact, output=output or "probabilities").to(pick_device(device))
    if name == "gan":
        return restore_gan(artifact).to(pick_device(device))
    return restore_vae(artifact, std=std or "rbf").to(pick_device(device))


def load_codes(name: str, device: Device = "cpu") -> Codes:
    """Latent codes of the official MNIST test images of digits 2, 4, 5, 7 in a shipped model.

    Parameters
    ----------
    name : {"vae1", "vae2", "gan"}
        Whose codes: of the VAEs by their encoders, of the GAN by inversion.
    device : str or torch.device
        Where to put them.

    Returns
    -------
    Codes
        ``.z`` (n, d), ``.std`` (n, d), ``.label`` (n,), ``.index`` (n,).

    Raises
    ------
    ValueError
        If there is no such model.
    lgi.artifacts.ArtifactError
        If the file is missing or damaged.
    """
    if name not in CODES:
        raise ValueError(f"there are no shipped codes of {name!r}; there are those of {', '.join(CODES)}")
    return restore_codes(_shipped(name), device)


def restore_vae(artifact: artifacts.Artifact, *, std: Std = "rbf", fused: bool = True) -> VAE:
    """VAE of a recorded training (:func:`lgi.recipes.train_or_load`), on the CPU, in eval mode.

    Parameters
    ----------
    artifact : lgi.artifacts.Artifact
        The record.
    std : {"rbf", "constant"}
        Variance model of the decoder.
    fused : bool
        Whether norms are folded and parameters frozen (:func:`lgi.models.fuse`), which geometry wants.

    Returns
    -------
    VAE
        The model.
    """
    one_of(get_args(Std), std=std)
    with torch.random.fork_rng(devices=[]):  # for initial weights, which are not kept
        vae = VAE(_architecture(artifact), artifact.settings.get("likelihood", "gaussian"))
    state = _state(artifact)
    gaussian = isinstance(vae.decoder, Decoder)  # only it has a standard deviation
    if gaussian:
        rbf = {k: state[f"decoder.std_net.{k}"] for k in ("centres", "bandwidths", "weight")}
        floor = float(state["decoder.std_net.floor"])
        vae.decoder.std_net = RBFPrecision(**rbf, floor=floor, data_shape=vae.decoder.data_shape)
    vae.load_state_dict(state)
    if gaussian and std == "constant":
        vae.decoder.std_net = ConstantStd(vae.decoder.data_shape, artifact.record["history"][-1]["std"])
    return fuse(vae) if fused else vae.eval()


def restore_gan(artifact: artifacts.Artifact, *, fused: bool = True) -> GAN:
    """GAN of a recorded training (:func:`lgi.recipes.train_or_load`), on the CPU, in eval mode.

    Parameters
    ----------
    artifact : lgi.artifacts.Artifact
        The record.
    fused : bool
        Whether norms are folded and parameters frozen (:func:`lgi.models.fuse`), which geometry wants.

    Returns
    -------
    GAN
        The model; ``gan.generator`` is deterministic.
    """
    with torch.random.fork_rng(devices=[]):  # as in restore_vae
        gan = GAN(_architecture(artifact))
    gan.load_state_dict(_state(artifact))
    return fuse(gan) if fused else gan.eval()


def restore_codes(artifact: artifacts.Artifact, device: Device = "cpu") -> Codes:
    """Latent codes of a recorded training, on a device."""
    fields = ("z", "std", "label", "index")
    return Codes(**{key: artifact.tensors[f"codes.{key}"].to(pick_device(device)) for key in fields})


def restore_logistic_regression(
    artifact: artifacts.Artifact, *, output: ClassifierOutput = "probabilities"
) -> LogisticRegression:
    """Module of a recorded fit (:func:`lgi.recipes.fit_or_load_logistic_regression`), on the CPU."""
    return LogisticRegression(**{key: artifact.tensors[key] for key in ("weight", "bias", "classes")}, output=output)


def _architecture(artifact: artifacts.Artifact) -> Architecture:
    settings = dict(artifact.settings["architecture"])
    return Architecture(**settings | {"channels": tuple(settings["channels"])})


def _state(artifact: artifacts.Artifact) -> dict[str, Tensor]:
    return {k.removeprefix("model."): v for k, v in artifact.tensors.items() if k.startswith("model.")}


def _shipped(name: str) -> artifacts.Artifact:
    return artifacts.load(artifacts.data_folder() / "models" / name, name=name)
