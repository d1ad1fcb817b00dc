"""The shipped models and latent codes, ready for use."""

import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args, overload

import torch
from torch import Tensor

from lgi import artifacts, models
from lgi.checks import one_of
from lgi.features import ClassifierOutput, LogisticRegression
from lgi.models import GAN, VAE, Architecture, Decoder, RBFPrecision, fuse, pick_device

VAES = ("vae1", "vae2")
CODES = (*VAES, "gan")
MODELS = (*CODES, "logistic_regression", "published")
N_TRAININGS = 5
"""Trainings of each VAE, each with a seed of its own; of ours only the first is shipped."""

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
def load_model(
    name: Literal["vae1", "vae2", "published"],
    device: Device = "cpu",
    *,
    seed: int = 0,
    std: Std = "rbf",
    bandwidth: float | None = None,
    n_centres: int | None = None,
) -> VAE: ...
@overload
def load_model(name: Literal["gan"], device: Device = "cpu") -> GAN: ...
@overload
def load_model(
    name: Literal["logistic_regression"], device: Device = "cpu", *, output: ClassifierOutput = "probabilities"
) -> LogisticRegression: ...
def load_model(
    name: str,
    device: Device = "cpu",
    *,
    std: Std | None = None,
    seed: int | None = None,
    bandwidth: float | None = None,
    n_centres: int | None = None,
    output: ClassifierOutput | None = None,
) -> VAE | GAN | LogisticRegression:
    r"""Shipped model, trained on MNIST digits 2, 4, 5, 7.

    Parameters
    ----------
    name : {"vae1", "vae2", "gan", "logistic_regression", "published"}
        Which one. ``"published"`` is the VAE of the paper's public code (:data:`lgi.recipes.PUBLISHED`); its images are
        in [-1, 1], those of all others in [0, 1].
    device : str or torch.device
        Where to put it; ``"auto"`` is the GPU when there is one.
    std : {"rbf", "constant"}, optional
        Variance model of a VAE's decoder: the RBF precision network (the paper's, the default), or the one constant
        it was trained with.
    seed : int, optional
        Which training of a VAE, 0 to 4; by default 0. Of VAE1 and VAE2 only that one is shipped: the others are there
        where ``python -m lgi.recipes vae1-3`` has trained them.
    bandwidth : float, optional
        c of the RBF network, of basis functions :math:`\exp(-\|z - c_k\|^2 / (2 (c\, s_k)^2))` with s_k the mean
        distance of cluster k to its centre: the smaller, the closer to the codes does the standard deviation rise. By
        default the one of the model's recipe, 1.25 (ours) or 1 (published).
    n_centres : int, optional
        k, the number of basis functions; by default the recipe's, 64 (ours) or 8 (published).
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
        If there is no such model, training or network (those that there are are listed), it has no such option, or the
        device is not available.
    lgi.artifacts.ArtifactError
        If the file is missing (of a training that is not shipped: what makes it) or damaged.
    """
    if name not in MODELS:
        raise ValueError(f"there is no shipped model named {name!r}; there are {', '.join(MODELS)}")
    of_vaes, is_vae = (std, bandwidth, n_centres), name in (*VAES, "published")
    if (of_vaes != (None, None, None) and not is_vae) or (output is not None and name != "logistic_regression"):
        raise ValueError(
            "std, bandwidth and n_centres are options of the VAEs, output one of the logistic regression; "
            "the GAN has no options"
        )
    if std == "constant" and (bandwidth, n_centres) != (None, None):
        raise ValueError('bandwidth and n_centres are those of std="rbf"; the constant one has neither')
    file = _file(name, seed)
    artifact = _shipped(file)
    if name == "logistic_regression":
        return restore_logistic_regression(artifact, output=output or "probabilities").to(pick_device(device))
    if name == "gan":
        return restore_gan(artifact).to(pick_device(device))
    vae = restore_vae(artifact, std=std or "rbf")
    own = (artifact.settings["training"]["n_centres"], artifact.settings["training"]["bandwidth_factor"])
    wanted = (n_centres or own[0], bandwidth or own[1])
    if wanted != own:
        vae.decoder.std_net = restore_rbf(_shipped(f"{file}-rbf"), *wanted, own=own)
    return vae.to(pick_device(device))


def variant(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of :func:`load_model` that a short name stands for, as it can be part of a file's name.

    Parameters
    ----------
    text : str
        Name of a model, then any of ``-t<seed>``, ``-k<n_centres>``, ``-c<bandwidth>`` and ``-constant``: training 3
        of the published recipe with 8 centres and bandwidth 0.6 is ``"published-t3-k8-c0.6"``.

    Returns
    -------
    (str, dict)
        Such as ``("published", {"seed": 3, "n_centres": 8, "bandwidth": 0.6})``.

    Raises
    ------
    ValueError
        If it stands for nothing; whether there is such a model is left to :func:`load_model`.
    """
    found = re.fullmatch(r"(\w+?)(-t(?P<seed>\d+))?(-k(?P<k>\d+))?(-c(?P<c>[\d.]+))?(?P<constant>-constant)?", text)
    if found is None:
        raise ValueError(f"expected a model and any of -t<seed>, -k<centres>, -c<bandwidth>, -constant: got {text!r}")
    seed, k, c, constant = found.group("seed", "k", "c", "constant")
    options = {"seed": seed and int(seed), "n_centres": k and int(k), "bandwidth": c and float(c)}
    options |= {"std": "constant" if constant else None}
    return found[1], {name: value for name, value in options.items() if value is not None}


def load_codes(name: str, device: Device = "cpu", *, seed: int | None = None) -> Codes:
    """Latent codes of the official MNIST test images of digits 2, 4, 5, 7 in a shipped model.

    Parameters
    ----------
    name : {"vae1", "vae2", "gan", "published"}
        Whose codes: of the VAEs by their encoders, of the GAN by inversion.
    device : str or torch.device
        Where to put them.
    seed : int, optional
        Which training of a VAE, as in :func:`load_model`; by default 0.

    Returns
    -------
    Codes
        ``.z`` (n, d), ``.std`` (n, d), ``.label`` (n,), ``.index`` (n,).

    Raises
    ------
    ValueError
        If there is no such model or training.
    lgi.artifacts.ArtifactError
        If the file is missing or damaged.
    """
    if name not in (*CODES, "published"):
        raise ValueError(f"there are no shipped codes of {name!r}; there are those of {', '.join(CODES)} and published")
    return restore_codes(_shipped(_file(name, seed)), device)


def _file(name: str, seed: int | None) -> str:
    """Name of the file of a shipped model."""
    if name not in (*VAES, "published") and seed is not None:
        raise ValueError(f"seed is an option of the VAEs, with {N_TRAININGS} trainings each, not of {name}")
    if (seed or 0) not in range(N_TRAININGS):
        raise ValueError(f"there is no training of {name} with seed {seed}; there are 0 to {N_TRAININGS - 1}")
    return f"{name}-{seed or 0}" if seed or name == "published" else name


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
        vae.decoder.std_net = models.ConstantStd(vae.decoder.data_shape, artifact.record["history"][-1]["std"])
    return fuse(vae) if fused else vae.eval()


def rbf_key(n_centres: int, bandwidth: float) -> str:
    """Name of an RBF network among the tensors of an artefact."""
    return f"k{n_centres}.c{bandwidth:g}"


def packed_rbf(net: RBFPrecision) -> dict[str, Tensor]:
    r"""Tensors of an RBF network, its weights in 8 bits: :math:`W = e^{q\,s} - 1`, to 1 % where they are large."""
    step = net.weight.max().log1p() / 255
    levels = (net.weight.log1p() / step).round().to(torch.uint8)
    return {"centres": net.centres, "bandwidths": net.bandwidths, "levels": levels, "step": step, "floor": net.floor}


def restore_rbf(
    artifact: artifacts.Artifact, n_centres: int, bandwidth: float, *, own: tuple[int, float] | None = None
) -> RBFPrecision:
    """RBF precision network of a recorded fit (:func:`lgi.recipes.fit_or_load_rbf`), on the CPU.

    Parameters
    ----------
    artifact : lgi.artifacts.Artifact
        The record.
    n_centres, bandwidth : int, float
        k and c of the network.
    own : (int, float), optional
        k and c of another network that there is, for the message.

    Raises
    ------
    ValueError
        If there is none with these; those that there are are listed.
    """
    key = rbf_key(n_centres, bandwidth)
    parts = {k.removeprefix(f"{key}."): v for k, v in artifact.tensors.items() if k.startswith(f"{key}.")}
    if not parts:
        there = sorted({k.rsplit(".", 1)[0] for k in artifact.tensors} | ({rbf_key(*own)} if own else set()))
        raise ValueError(
            f"there is no shipped network with n_centres={n_centres} and bandwidth={bandwidth:g}; there are (k and c): "
            f"{', '.join(there)}"
        )
    weight = (parts["levels"] * parts["step"]).expm1()
    floor = parts["floor"].item()
    return RBFPrecision(parts["centres"], parts["bandwidths"], weight, floor=floor, data_shape=(1, 28, 28))


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
        gan = GAN(cast(Architecture, _architecture(artifact)))
    gan.load_state_dict(_state(artifact))
    return fuse(gan) if fused else gan.eval()


def restore_codes(artifact: artifacts.Artifact, device: Device = "cpu") -> Codes:
    """Latent codes of a recorded training, on a device."""
    fields = ("z", "std", "label", "index")
    codes = {key: artifact.tensors[f"codes.{key}"].to(pick_device(device)) for key in fields}
    return Codes(**{key: x.float() if x.is_floating_point() else x.long() for key, x in codes.items()})


def restore_logistic_regression(
    artifact: artifacts.Artifact, *, output: ClassifierOutput = "probabilities"
) -> LogisticRegression:
    """Module of a recorded fit (:func:`lgi.recipes.fit_or_load_logistic_regression`), on the CPU."""
    return LogisticRegression(**{key: artifact.tensors[key] for key in ("weight", "bias", "classes")}, output=output)


def _architecture(artifact: artifacts.Artifact) -> models.AnyArchitecture:
    settings = dict(artifact.settings["architecture"])
    if "hidden" not in settings:
        return models.PublishedArchitecture(**settings)
    return Architecture(**settings | {"channels": tuple(settings["channels"])})


def _state(artifact: artifacts.Artifact) -> dict[str, Tensor]:
    state = {k.removeprefix("model."): v for k, v in artifact.tensors.items() if k.startswith("model.")}
    return {k: v.float() if v.dtype == torch.float16 else v for k, v in state.items()}


def _shipped(name: str) -> artifacts.Artifact:
    path, of = artifacts.data_folder() / "models" / name, name.removesuffix("-rbf")
    if of.startswith(VAES) and of not in VAES and not artifacts.exists(path):
        raise artifacts.ArtifactError(f"{path} is not shipped: python -m lgi.recipes {of} trains it")
    return artifacts.load(path, name=name)
