"""The convolutional VAE, its RBF precision network, the GAN, and the fused form that geometry uses.

Nothing here trains and nothing here reads a disk; see :mod:`lgi.training`, :mod:`lgi.recipes` and :mod:`lgi.zoo`.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from lgi.checks import one_of, whole

Network = TypeVar("Network", bound=nn.Module)

# Smooth only: the geodesic equation needs second derivatives of the decoder, which a ReLU does not have.
ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU, "softplus": nn.Softplus, "tanh": nn.Tanh}

# Variance of the pixels in the paper's public code: its 0.5 enters the loss as a logarithm.
PUBLISHED_STD = math.exp(0.25)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Shape of a convolutional VAE or GAN for (1, 28, 28) images.

    The paper fixes a two-dimensional latent space and a ratio of 16 between the parameter counts of its two models;
    everything else here is ours.

    Parameters
    ----------
    latent_dim
        Dimension d of the latent space (2 in the paper).
    channels
        Channels at 14 x 14 and at 7 x 7 pixels.
    hidden
        Width of the dense layer between latent space and the 7 x 7 image.
    normalisation
        ``"batch"``, ``"spectral"`` (on every convolution but the last) or ``"none"``; :func:`fuse` folds both away.
    activation
        One of ``"silu"``, ``"gelu"``, ``"softplus"``, ``"tanh"``.
    """

    latent_dim: int = 2
    channels: tuple[int, int] = (16, 32)
    hidden: int = 64
    normalisation: Literal["batch", "spectral", "none"] = "batch"
    activation: str = "silu"

    image_range: ClassVar = (0.0, 1.0)
    fixed_std: ClassVar = None

    def __post_init__(self) -> None:
        sizes = (self.latent_dim, self.hidden, *self.channels)
        if len(sizes) != 4 or not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise ValueError(
                "expected positive integers latent_dim and hidden and two positive integers channels, "
                f"got latent_dim={self.latent_dim}, hidden={self.hidden}, channels={self.channels}"
            )
        one_of(("batch", "spectral", "none"), normalisation=self.normalisation)
        one_of(ACTIVATIONS, activation=self.activation)

    def encoder_network(self) -> nn.Sequential:
        """From images (n, 1, 28, 28) to mean and logarithm of the standard deviation, (n, 2 d)."""
        return nn.Sequential(
            *_downwards(self, self.normalisation),
            nn.Flatten(),
            nn.Linear(self.channels[1] * 49, self.hidden),
            ACTIVATIONS[self.activation](),
            nn.Linear(self.hidden, 2 * self.latent_dim),
        )

    def image_network(self) -> nn.Sequential:
        """From latent points (n, d) to images (n, 1, 28, 28) in [0, 1]."""
        (c14, c7), activation = self.channels, ACTIVATIONS[self.activation]
        return nn.Sequential(
            nn.Linear(self.latent_dim, self.hidden),
            activation(),
            nn.Linear(self.hidden, c7 * 49),
            activation(),
            nn.Unflatten(1, (c7, 7, 7)),
            *_normalised(nn.Conv2d(c7, 4 * c14, 3, padding=1), self.normalisation),
            activation(),
            nn.PixelShuffle(2),
            nn.Conv2d(c14, 4, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Sigmoid(),
        )


@dataclass(frozen=True, kw_only=True)
class PublishedArchitecture:
    r"""Shape of the VAE in the paper's public code, which its text does not give: images are in [-1, 1].

    The encoder has convolutions 1 to c (kernel 4, stride 2) and c to c (kernel 3, stride 2), and two dense heads, mean
    and log-variance; the decoder a dense layer to c x 6 x 6, transposed convolutions c to c (kernel 3, stride 2, then
    kernel 4, stride 2), a convolution c to 1 (kernel 1), and tanh. Spectral norm, batch norm and ELU follow all
    convolutions but the last. The standard deviation is not trained: sigma^2 = e^0.5 (see ``PUBLISHED_STD``).

    Parameters
    ----------
    latent_dim
        Dimension d of the latent space: 2 in the paper's figures, 16 by default in its code.
    channels
        c: with 32, as published, and d = 2 there are 43,813 parameters.

    References
    ----------
    github.com/mmichelis/GenerativeLatentSpace, as of 2021-04-24.
    """

    latent_dim: int = 2
    channels: int = 32

    image_range: ClassVar = (-1.0, 1.0)
    fixed_std: ClassVar = PUBLISHED_STD

    def __post_init__(self) -> None:
        whole(1, latent_dim=self.latent_dim, channels=self.channels)

    def encoder_network(self) -> nn.Sequential:
        """From images (n, 1, 28, 28) in [-1, 1] to mean and logarithm of the standard deviation, (n, 2 d)."""
        return nn.Sequential(
            *self._block(nn.Conv2d(1, self.channels, 4, stride=2)),
            *self._block(nn.Conv2d(self.channels, self.channels, 3, stride=2)),
            nn.Flatten(),
            nn.Linear(self.channels * 36, 2 * self.latent_dim),
            HalfLogVariance(),
        ).to(memory_format=torch.channels_last)  # a third faster to train on a CPU

    def image_network(self) -> nn.Sequential:
        """From latent points (n, d) to images (n, 1, 28, 28) in [-1, 1]."""
        return nn.Sequential(
            nn.Linear(self.latent_dim, self.channels * 36),
            nn.Unflatten(1, (self.channels, 6, 6)),
            *self._block(nn.ConvTranspose2d(self.channels, self.channels, 3, stride=2)),
            *self._block(nn.ConvTranspose2d(self.channels, self.channels, 4, stride=2)),
            nn.Conv2d(self.channels, 1, 1),
            nn.Tanh(),
        ).to(memory_format=torch.channels_last)

    def _block(self, convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
        return [spectral_norm(convolution), nn.BatchNorm2d(self.channels), nn.ELU()]


AnyArchitecture: TypeAlias = Architecture | PublishedArchitecture


class HalfLogVariance(nn.Module):
    """Logarithm of the standard deviation where the second half of a layer (n, 2 d) is that of the variance."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, 2 d) with its second half halved."""
        mean, log_variance = x.chunk(2, dim=-1)
        return torch.cat([mean, log_variance / 2], dim=-1)


class ConstantStd(nn.Module):
    r"""One standard deviation for all pixels and all latent points.

    .. math:: \sigma(z) = e^{s}

    Parameters
    ----------
    data_shape
        Shape of one data point.
    std
        Initial value of sigma, in units of the data.
    trained
        Whether its logarithm s is trained (Rybkin et al. 2021).

    References
    ----------
    Rybkin, Daniilidis, Levine, "Simple and effective VAE training with calibrated decoders", ICML 2021.
    """

    log_std: Tensor

    def __init__(self, data_shape: tuple[int, ...], std: float = 0.3, *, trained: bool = True) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)
        log_std = torch.tensor(math.log(std))
        if trained:
            self.log_std = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std)

    def forward(self, z: Tensor) -> Tensor:
        """Standard deviation at z (n, d), shape (n, *data_shape)."""
        return self.log_std.exp().expand(z.shape[0], *self.data_shape)


class RBFPrecision(nn.Module):
    r"""Standard deviation whose inverse square is a radial basis function network (Arvanitidis et al. 2018).

    .. math::
        \sigma_j(z)^{-2} = \sum_k W_{kj}\, v_k(z) + \zeta, \qquad
        v_k(z) = \exp(-\lambda_k \|z - c_k\|^2), \qquad W_{kj} \ge 0

    Far from every centre the precision falls to the floor zeta, so that sigma rises to its largest value
    zeta^(-1/2): the decoder says that it does not know. :func:`lgi.training.fit_rbf_precision` places the centres and
    fits the weights.

    Parameters
    ----------
    centres
        c, shape (n_centres, d).
    bandwidths
        lambda, shape (n_centres,), positive, in inverse squared latent units.
    weight
        W, shape (n_centres, D) with D the number of pixels, non-negative, in inverse squared data units.
    floor
        zeta > 0, in inverse squared data units.
    data_shape
        Shape of one data point, of D entries.

    Raises
    ------
    ValueError
        If shapes do not match, a weight is negative, or a bandwidth or the floor is not positive and finite.

    References
    ----------
    Arvanitidis, Hansen, Hauberg, "Latent space oddity: on the curvature of deep generative models", ICLR 2018, sec. 4.
    """

    centres: Tensor
    bandwidths: Tensor
    weight: Tensor
    floor: Tensor

    def __init__(
        self, centres: Tensor, bandwidths: Tensor, weight: Tensor, *, floor: float, data_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        n_centres, n_pixels = centres.shape[0], math.prod(data_shape)
        if centres.ndim != 2 or bandwidths.shape != (n_centres,) or weight.shape != (n_centres, n_pixels):
            raise ValueError(
                f"expected centres (n_centres, d), bandwidths (n_centres,) and weight (n_centres, {n_pixels}), got "
                f"{tuple(centres.shape)}, {tuple(bandwidths.shape)} and {tuple(weight.shape)}"
            )
        if not bool((weight >= 0).all()):
            raise ValueError("weight must be non-negative and finite: a negative one could make a precision negative")
        if not bool(((bandwidths > 0) & bandwidths.isfinite()).all()):
            raise ValueError("bandwidths must be positive and finite; an empty or one-point cluster has none")
        if not (floor > 0 and math.isfinite(floor)):
            raise ValueError(f"floor must be positive and finite, got {floor}")
        self.data_shape = tuple(data_shape)
        # Buffers, not parameters: they are fitted in closed-form steps, never by gradient.
        for name, value in (("centres", centres), ("bandwidths", bandwidths), ("weight", weight)):
            self.register_buffer(name, value.detach().clone())
        self.register_buffer("floor", torch.as_tensor(floor, dtype=weight.dtype, device=weight.device))

    def basis(self, z: Tensor) -> Tensor:
        """Radial basis functions v(z), z (n, d), shape (n, n_centres)."""
        return torch.exp(-self.bandwidths * (z[:, None, :] - self.centres).square().sum(-1))

    def precision(self, z: Tensor) -> Tensor:
        """Inverse variance at z (n, d), shape (n, *data_shape), in inverse squared data units."""
        return (self.basis(z) @ self.weight + self.floor).view(-1, *self.data_shape)

    def forward(self, z: Tensor) -> Tensor:
        """Standard deviation at z (n, d), shape (n, *data_shape), between 0 and ``floor ** -0.5``."""
        return self.precision(z).rsqrt()


class Encoder(nn.Module):
    r"""Gaussian q(z | x) = N(mean(x), diag std(x)^2) of a convolutional VAE.

    Parameters
    ----------
    architecture
        Its shape; see :class:`Architecture`.
    """

    def __init__(self, architecture: AnyArchitecture) -> None:
        super().__init__()
        self.latent_dim = architecture.latent_dim
        self.data_shape = (1, 28, 28)
        self.body = architecture.encoder_network()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | x), each (n, d), for x (n, 1, 28, 28)."""
        if x.shape[1:] != self.data_shape:
            raise ValueError(f"expected images of shape (n, 1, 28, 28), got {tuple(x.shape)}")
        mean, log_std = self.body(x).chunk(2, dim=-1)
        return mean, log_std.exp()


class ImageGenerator(nn.Module):
    """Deterministic generator of images (eq. 1); the same network as the mean of :class:`Decoder`.

    Parameters
    ----------
    architecture
        Its shape; see :class:`Architecture`.

    Attributes
    ----------
    latent_dim, data_shape
        What :class:`lgi.PullbackMetric` needs to know.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.latent_dim = architecture.latent_dim
        self.data_shape = (1, 28, 28)
        self.network = architecture.image_network()

    def forward(self, z: Tensor) -> Tensor:
        """Images (n, 1, 28, 28) in [0, 1] for latent points z (n, d)."""
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"expected latent points of shape (n, {self.latent_dim}), got {tuple(z.shape)}")
        return self.network(z)


def gaussian_log_likelihood(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    r"""Log density of a diagonal Gaussian, summed over the data dimensions.

    .. math:: \log p(x) = -\sum_j \tfrac12 \left(\frac{x_j - \mu_j}{\sigma_j}\right)^2 + \log\sigma_j
       + \tfrac12\log 2\pi

    Parameters
    ----------
    x, mean, std
        Each (n, *data_shape).

    Returns
    -------
    Tensor
        (n,), in nats.
    """
    density = -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).sum(1)


class Decoder(nn.Module):
    r"""Gaussian p(x | z) = N(mean(z), diag std(z)^2) of a convolutional VAE; the stochastic generator of eq. 2.

    Parameters
    ----------
    architecture
        Its shape; see :class:`Architecture`.

    Attributes
    ----------
    latent_dim, data_shape
        What :class:`lgi.PullbackMetric` needs to know.
    mean_net, std_net
        The two maps; ``std_net`` is a :class:`ConstantStd` until an :class:`RBFPrecision` takes its place.

    Notes
    -----
    The image grows by sub-pixel convolutions (Shi et al. 2016): faster on a CPU than transposed convolutions, and
    without the checkerboard of overlapping strides.
    """

    def __init__(self, architecture: AnyArchitecture) -> None:
        super().__init__()
        self.latent_dim = architecture.latent_dim
        self.data_shape = (1, 28, 28)
        self.mean_net = architecture.image_network()
        constant = ConstantStd(self.data_shape)
        if architecture.fixed_std is not None:
            constant = ConstantStd(self.data_shape, architecture.fixed_std, trained=False)
        self.std_net: ConstantStd | RBFPrecision = constant

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of p(x | z), each (n, 1, 28, 28), for z (n, d); the mean is an image."""
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"expected latent points of shape (n, {self.latent_dim}), got {tuple(z.shape)}")
        return self.mean_net(z), self.std_net(z)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Log density log p(x | z) of data x (n, 1, 28, 28) at latent points z (n, d), shape (n,), in nats."""
        return gaussian_log_likelihood(x, *self(z))


# Likelihoods of a VAE by name. Each is the class of its decoder: a module made of an Architecture, with ``latent_dim``
# and ``data_shape``, whose call is the generator that PullbackMetric takes, and with ``log_likelihood(x, z)``.
DECODERS: dict[str, Callable[[AnyArchitecture], Any]] = {"gaussian": Decoder}


class VAE(nn.Module):
    """Encoder and decoder of a variational autoencoder with prior N(0, I) (Kingma & Welling 2014).

    Parameters
    ----------
    architecture
        Its shape; see :class:`Architecture`.
    likelihood
        p(x | z), one of the names in ``DECODERS``.
    """

    def __init__(self, architecture: AnyArchitecture, likelihood: str = "gaussian") -> None:
        super().__init__()
        one_of(DECODERS, likelihood=likelihood)
        self.architecture = architecture
        self.encoder = Encoder(architecture)
        self.decoder: Decoder = DECODERS[likelihood](architecture)

    @property
    def n_parameters(self) -> int:
        """Number of parameters trained by gradient, of encoder and decoder.

        RBF weights are not counted: they are fitted afterwards in closed-form steps, equally many in both models. The
        constant log std is, also when they have taken its place.
        """
        replaced = isinstance(getattr(self.decoder, "std_net", None), RBFPrecision) and not self.architecture.fixed_std
        return sum(p.numel() for p in self.parameters()) + replaced


class Discriminator(nn.Module):
    """Logit of the probability that an image is real, as seen among the images of its batch.

    Parameters
    ----------
    architecture
        Its shape; see :class:`Architecture`. It has no normalisation: batch norm would tell real from generated by
        the batch they come in, and its gradient penalty regularises it already.

    Notes
    -----
    One channel more holds the standard deviation over the batch, averaged over channels and pixels (Karras et al.
    2018): a generator that always gives the same is found out by it.

    References
    ----------
    Karras, Aila, Laine, Lehtinen, "Progressive growing of GANs", ICLR 2018, sec. 3.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.data_shape = (1, 28, 28)
        self.body = nn.Sequential(*_downwards(architecture, "none"))
        width, hidden = (architecture.channels[1] + 1) * 49, architecture.hidden
        dense = nn.Linear(width, hidden), ACTIVATIONS[architecture.activation](), nn.Linear(hidden, 1)
        self.head = nn.Sequential(nn.Flatten(), *dense, nn.Flatten(0))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n,) for images x (n, 1, 28, 28)."""
        if x.shape[1:] != self.data_shape:
            raise ValueError(f"expected images of shape (n, 1, 28, 28), got {tuple(x.shape)}")
        features = self.body(x)
        # The square root of 0, of a batch of one, would have an infinite gradient.
        spread = (features.var(0, unbiased=False) + 1e-8).sqrt().mean()
        return self.head(torch.cat([features, spread.expand(len(x), 1, 7, 7)], dim=1))


class GAN(nn.Module):
    """Generator and discriminator of a generative adversarial network with prior N(0, I) (Goodfellow et al. 2014).

    There is no encoder: :func:`lgi.invert` finds the latent code of an image.

    Parameters
    ----------
    architecture
        Its shape; see :class:`Architecture`.

    Attributes
    ----------
    generator
        ``(n, d) -> (n, 1, 28, 28)``, deterministic: what the decoder is to a :class:`VAE`.
    discriminator
        Needed in training only.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.generator = ImageGenerator(architecture)
        self.discriminator = Discriminator(architecture)

    @property
    def n_parameters(self) -> int:
        """Number of parameters trained by gradient, of both networks."""
        return sum(p.numel() for p in self.parameters())


def fuse(module: Network) -> Network:
    """Inference form of a network: batch and spectral norm folded into the weights, parameters frozen, eval mode.

    The result computes what ``module.eval()`` computes, up to rounding, in fewer and cheaper steps, and never
    keeps a graph through its parameters. The module given is left as it is.

    Parameters
    ----------
    module
        Any network. Batch norms are folded where they follow a convolution or a dense layer inside an
        :class:`torch.nn.Sequential`; one that stands elsewhere stays as it is (in eval mode it is an affine map).

    Returns
    -------
    torch.nn.Module
        A fused deep copy.
    """
    fused = copy.deepcopy(module).eval()
    for part in list(fused.modules()):
        # In eval mode: in train mode, reading a spectrally normalised weight would advance its power iteration.
        if is_parametrized(part):
            # A deep copy shares its injected class with the original, and torch removes the weight from that class.
            shared = type(part)
            own = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
            part.__class__ = type(shared.__name__, shared.__bases__, own)
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                remove_parametrizations(part, name, leave_parametrized=True)
    for part in list(fused.modules()):
        if isinstance(part, nn.Sequential):
            _fold_batch_norms(part)
    return fused.requires_grad_(False)


def _fold_batch_norms(sequence: nn.Sequential) -> None:
    """Fold each batch norm into the layer before it and take it out of the sequence, in place."""
    i = 1
    while i < len(sequence):
        before, layer = sequence[i - 1], sequence[i]
        if isinstance(layer, nn.BatchNorm2d) and isinstance(before, (nn.Conv2d, nn.ConvTranspose2d)):
            sequence[i - 1] = fuse_conv_bn_eval(before, layer, transpose=isinstance(before, nn.ConvTranspose2d))
        elif isinstance(layer, nn.BatchNorm1d) and isinstance(before, nn.Linear):
            sequence[i - 1] = fuse_linear_bn_eval(before, layer)
        else:
            i += 1
            continue
        del sequence[i]


def _downwards(architecture: Architecture, normalisation: str) -> list[nn.Module]:
    """From images (n, 1, 28, 28) to (n, channels[1], 7, 7), in two convolutions."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise((1, *architecture.channels)):
        layers += _normalised(nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), normalisation)
        layers.append(ACTIVATIONS[architecture.activation]())
    return layers


def _normalised(convolution: nn.Conv2d, normalisation: str) -> list[nn.Module]:
    """Convolution with what normalises it, as consecutive layers."""
    if normalisation == "batch":
        return [convolution, nn.BatchNorm2d(convolution.out_channels)]
    return [spectral_norm(convolution) if normalisation == "spectral" else convolution]


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Device that a name stands for; ``"auto"`` is the first GPU when there is one, else the CPU.

    Raises
    ------
    ValueError
        If the device is unknown or not available on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f'device {str(device)!r} is not available here; use "auto" or "cpu" ({error})') from error
    return torch.device(device)
