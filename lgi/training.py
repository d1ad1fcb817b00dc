"""Training loops as generators that yield one record a step; `lgi.recipes` has what is trained with them."""

import copy
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim import Adam
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lgi import artifacts
from lgi.checks import at_least, whole
from lgi.models import GAN, VAE, ConstantStd, ImageGenerator, RBFPrecision

# Raise when a change makes the same settings give another model: it is part of every settings hash.
RECIPE_VERSION = 1

# Of a training: one a step or an epoch, with numbers by name.
Records: TypeAlias = Iterator[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a VAE is trained; the paper gives none of these, all defaults are ours.

    Parameters
    ----------
    epochs, batch_size, learning_rate
        Of the constant-variance phase: Adam, cosine decay to zero.
    seed
        Of initial weights, batches, reparametrisation noise and k-means.
    n_centres
        Centres of the RBF precision network.
    bandwidth_factor
        a in lambda_k = (a s_k)^-2 / 2 with s_k the mean distance of cluster k to its centre. Arvanitidis et al. 2018
        leave a free; ours has the best held-out ELBO of VAE1 among 0.75, 1, 1.25, 1.5 and 2 (exercise 3 of
        notebook 01 repeats the comparison).
    dither_std
        Standard deviation, in units of the data, of the noise in whose presence the RBF network is fitted. Without it,
        pixels that are always black would buy any likelihood; with it, the variance around every centre is at least
        its square on average. Likelihoods are comparable at equal dither only.
    max_std
        Largest standard deviation, far from all data: the whole range of a pixel.
    n_rbf_steps
        Steps of the RBF fit; epochs of it where ``batch_size`` images are seen at a time (`fit_rbf_by_adam`).
    weight_decay
        Of Adam, added to the gradient.
    rate_decay
        Factor of the learning rate after each epoch, instead of the cosine.
    n_draws
        Latent points drawn for each image at each step.
    """

    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 2e-3
    seed: int = 0
    n_centres: int = 64
    bandwidth_factor: float = 1.25
    dither_std: float = 0.05
    max_std: float = 1.0
    n_rbf_steps: int = 100
    weight_decay: float = field(default=0.0, metadata={"added_later": True})
    rate_decay: float | None = field(default=None, metadata={"added_later": True})
    n_draws: int = field(default=1, metadata={"added_later": True})

    def rate(self, progress: float) -> float:
        """Learning rate when this share of the training, in [0, 1), is done."""
        if self.rate_decay is None:
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        # The addition is for a whole epoch that rounding has made a little less.
        return self.learning_rate * self.rate_decay ** math.floor(progress * self.epochs + 1e-6)

    def __post_init__(self) -> None:
        whole(1, epochs=self.epochs, batch_size=self.batch_size, n_draws=self.n_draws)
        at_least(0, weight_decay=self.weight_decay, rate_decay=self.rate_decay)
        whole(1, n_centres=self.n_centres, n_rbf_steps=self.n_rbf_steps)
        if not (self.learning_rate > 0 and self.bandwidth_factor > 0 and 0 <= self.dither_std < self.max_std):
            raise ValueError("expected learning_rate > 0, bandwidth_factor > 0 and 0 <= dither_std < max_std")


@dataclass(frozen=True, kw_only=True)
class GANSettings:
    """How a GAN is trained; it is not in the paper, all defaults are ours.

    Parameters
    ----------
    epochs, batch_size, learning_rate
        Adam of each network; the rate is constant for half of the time, then falls linearly to zero.
    seed
        Of initial weights, batches and latent points.
    gradient_penalty
        gamma of the penalty R1, in squared units of the data.
    penalty_interval
        The penalty is computed in one step of so many, and then weighs so many times as much (Karras et al. 2020).
    averaging
        The trained generator is the exponential moving average of the weights with this decay a step: single
        iterates circle around it.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    seed: int = 0
    gradient_penalty: float = 1.0
    penalty_interval: int = 4
    averaging: float = 0.998

    def __post_init__(self) -> None:
        whole(1, epochs=self.epochs, batch_size=self.batch_size, penalty_interval=self.penalty_interval)
        if not (self.learning_rate > 0 and self.gradient_penalty >= 0 and 0 <= self.averaging < 1):
            raise ValueError("expected learning_rate > 0, gradient_penalty >= 0 and 0 <= averaging < 1")


@dataclass(frozen=True)
class ElboTerms:
    """The two terms of the evidence lower bound, each (n,), in nats per image."""

    log_likelihood: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """Evidence lower bound log_likelihood - kl, (n,), in nats per image."""
        return self.log_likelihood - self.kl

    def means(self, prefix: str = "") -> dict[str, float]:
        """Mean of both terms and of the bound, as a record."""
        return {prefix + name: getattr(self, name).mean().item() for name in ("elbo", "log_likelihood", "kl")}


def kl_to_prior(mean: Tensor, std: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence of N(mean, diag std^2) from N(0, I), a term a latent dimension.

    .. math:: \tfrac12 (\mu_i^2 + \sigma_i^2 - 1) - \log\sigma_i

    Parameters
    ----------
    mean, std
        Each (n, d).

    Returns
    -------
    Tensor
        (n, d), in nats.
    """
    return 0.5 * (mean.square() + std.square() - 1) - std.log()


def elbo_terms(vae: Any, x: Tensor, noise: Tensor) -> ElboTerms:
    r"""Evidence lower bound of a VAE with prior N(0, I) (Kingma & Welling 2014, eq. 10).

    .. math:: E_{q(z|x)} \log p(x|z) - KL(q(z|x) \,\|\, N(0, I)),\qquad z = \mu_q(x) + \sigma_q(x)\,\epsilon

    Parameters
    ----------
    vae
        Anything with ``encoder(x)`` that returns (mean, std) and ``decoder.log_likelihood(x, z)``, (n,).
    x
        Data (n, *data_shape).
    noise
        Standard normal draws (n_samples, n, d): the expectation is their mean.

    Returns
    -------
    ElboTerms
        Differentiable in the parameters of the vae.
    """
    mean, std = vae.encoder(x)
    if noise.ndim != 3 or noise.shape[1:] != mean.shape:
        raise ValueError(f"expected noise of shape (n_samples, {mean.shape[0]}, {mean.shape[1]}), got {noise.shape}")
    z, copies = mean + std * noise, x.expand(len(noise), *x.shape)
    likelihood = vae.decoder.log_likelihood(copies.flatten(0, 1), z.flatten(0, 1))
    return ElboTerms(likelihood.view(len(noise), len(x)).mean(0), kl_to_prior(mean, std).sum(1))


@torch.no_grad()
def evaluate(vae: VAE, images: Tensor, *, n_samples: int = 1) -> ElboTerms:
    """ELBO terms of every image, in batches, with the same noise whenever it is called.

    Parameters
    ----------
    vae
        The model, in eval mode.
    images
        (n, 1, 28, 28), in [0, 1].
    n_samples
        Draws of z an image.
    """
    if vae.training:
        raise ValueError("the model is in train mode: batch statistics would leak into the ELBO; call vae.eval() first")
    device = _device_of(vae)
    noise = torch.randn(n_samples, len(images), vae.decoder.latent_dim, generator=stream_of(0))
    n_images = max(1, 500 // n_samples)
    batches = zip(images.split(n_images), noise.split(n_images, dim=1), strict=True)
    parts = [elbo_terms(vae, x.to(device), draws.to(device)) for x, draws in batches]
    return ElboTerms(torch.cat([p.log_likelihood for p in parts]), torch.cat([p.kl for p in parts]))


def train_vae(
    vae: VAE, train: Tensor, held_out: Tensor, settings: TrainingSettings, *, checkpoint: Path | None = None
) -> Records:
    """Train a VAE, a Gaussian one with one constant standard deviation, in place; yields a record an epoch.

    Parameters
    ----------
    vae
        The model; trained on the device it is on, left in eval mode.
    train, held_out
        Images (n, 1, 28, 28) in [0, 1].
    settings
        See :class:`TrainingSettings`. Epoch i draws its batches and noise from (seed, i) alone.
    checkpoint
        Where to save after each epoch (see :func:`lgi.artifacts.save`). If the file is there, training goes on
        after the epoch it holds, the records so far are yielded again, and the result is the one an uninterrupted
        run would have had.

    Yields
    ------
    dict
        epoch (from 1), seconds, train_elbo, train_log_likelihood, train_kl (running means), elbo, log_likelihood, kl
        (held-out, one draw an image, nats per image), of a Gaussian std (the constant one, data units).

    Raises
    ------
    lgi.artifacts.ArtifactError
        If the checkpoint is damaged or of other settings.
    """
    device, std_net = _device_of(vae), getattr(vae.decoder, "std_net", None)
    if isinstance(std_net, RBFPrecision):
        raise ValueError("the decoder already has an RBF precision network; train a fresh VAE, then fit the network")
    on_gpu = device.type == "cuda"
    rate = torch.tensor(settings.learning_rate, device=device) if on_gpu else settings.learning_rate
    flags: dict[str, Any] = {"fused": on_gpu, "capturable": on_gpu}
    optimizer = Adam(vae.parameters(), lr=rate, weight_decay=settings.weight_decay, **flags)
    identity = {"settings": settings, "architecture": vae.architecture, "n": [len(train), len(held_out)]}
    run = _Run(vae, [optimizer], identity, checkpoint)
    train = train.to(device)

    def step(x: Tensor, noise: Tensor) -> Tensor:
        terms = elbo_terms(vae, x, noise)
        _descend(optimizer, -terms.elbo.mean())
        return torch.stack([part.detach().mean() for part in (terms.elbo, terms.log_likelihood, terms.kl)])

    take = _Replayed(step, vae, optimizer) if on_gpu else step
    yield from run.history
    for epoch in range(len(run.history), settings.epochs):
        start = time.perf_counter()
        vae.train()
        stream = stream_of(settings.seed, epoch)
        # On the device and read once an epoch: reading waits for all that was launched.
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for batch, progress in _batches(len(train), settings, epoch, stream):
            _set_rate(optimizer, settings.rate(progress))
            noise = torch.randn(settings.n_draws, len(batch), vae.decoder.latent_dim, generator=stream)
            sums += take(train[batch.to(device)], noise.to(device)).double() * (len(batch) / len(train))
        vae.eval()
        record = {"epoch": float(epoch + 1), "seconds": time.perf_counter() - start}
        record |= dict(zip(("train_elbo", "train_log_likelihood", "train_kl"), sums.tolist(), strict=True))
        record |= evaluate(vae, held_out).means()
        if isinstance(std_net, ConstantStd):
            record["std"] = std_net.log_std.exp().item()
        yield run.keep(record)
    vae.eval()


@torch.no_grad()
def fit_rbf_precision(vae: VAE, train: Tensor, held_out: Tensor, settings: TrainingSettings) -> Records:
    r"""Give a trained VAE the standard deviation of an RBF precision network; yields a record a step.

    Codes z_n ~ q(z | x_n) and squared residuals r_n^2 = (x_n - mean(z_n))^2 are drawn once, each code with the residual
    of its own image. Centres are k-means centres of the codes. The weights maximise the Gaussian likelihood, a
    convex problem, solved by the multiplicative steps that Jensen's inequality gives,

    .. math:: W_{kj} \leftarrow W_{kj}\;
       \frac{\sum_n v_k(z_n) / \beta_j(z_n)}{\sum_n v_k(z_n)\,(r_{nj}^2 + \delta^2)},
       \qquad \beta_j(z) = \sum_k W_{kj} v_k(z) + \zeta,\quad \zeta = \sigma_{max}^{-2}:

    each lowers the loss, keeps W non-negative, and rests where around every centre the predicted variance 1 / beta
    equals the observed one. With delta the ``dither_std`` this is the expected likelihood of dithered data.

    Parameters
    ----------
    vae
        Trained with constant standard deviation, in eval mode; ``vae.decoder.std_net`` is replaced at the first step.
    train, held_out
        Images (n, 1, 28, 28) in [0, 1].
    settings
        See :class:`TrainingSettings`.

    Yields
    ------
    dict
        step (from 1), train_loss (negative log likelihood of the dithered data without constants, nats per image),
        and at every tenth and the last step the held-out elbo, log_likelihood, kl (nats per image).

    Raises
    ------
    ValueError
        If there are fewer distinct codes than centres.
    """
    weight, basis, target, floor = _start_rbf(vae, train, settings)
    observed = basis.T @ target
    for step in range(1, settings.n_rbf_steps + 1):
        precision = basis @ weight + floor
        weight *= (basis.T @ precision.reciprocal()) / observed
        yield _rbf_record(step, settings, vae, held_out, target, precision)


@torch.no_grad()
def fit_rbf_by_adam(vae: VAE, train: Tensor, held_out: Tensor, settings: TrainingSettings) -> Records:
    r"""Fit the RBF precision network as the paper's public code does, to own residuals; yields a record an epoch.

    As `fit_rbf_precision`, with other steps on the same likelihood (there named W, v, beta, zeta, r):

    .. math:: L = \sum_n \sum_j \tfrac12 \left(r_{nj}^2\, \beta_j(z_n) - \log\beta_j(z_n)\right)

    over batches of ``batch_size`` images, by Adam with a constant rate of 1 and ``weight_decay``, which is all that
    bounds the weights of pixels that are always black; W is clamped at 0 after each step, and starts as the weights
    of a dense layer. The code fits to the residuals of other images (`paper.md` has what that changes).

    Parameters
    ----------
    vae, train, held_out, settings
        As in `fit_rbf_precision`; ``n_rbf_steps`` is the number of epochs.

    Yields
    ------
    dict
        step (epoch, from 1), train_loss (nats per image, without constants), and at every tenth and the last one the
        held-out elbo, log_likelihood, kl.
    """
    weight, basis, target, floor = _start_rbf(vae, train, settings)
    stream = stream_of(settings.seed, -2)
    bound = settings.n_centres**-0.5
    weight.copy_(((2 * torch.rand(weight.shape, generator=stream) - 1) * bound).clamp_(min=0))
    parameter = nn.Parameter(weight)  # shares its memory
    optimizer = Adam([parameter], lr=1.0, weight_decay=settings.weight_decay)
    for step in range(1, settings.n_rbf_steps + 1):
        for batch in torch.randperm(len(target), generator=stream).to(target.device).split(settings.batch_size):
            precision = basis[batch] @ weight + floor
            parameter.grad = basis[batch].T @ (0.5 * (target[batch] - 1 / precision))
            optimizer.step()
            weight.clamp_(min=0)
        yield _rbf_record(step, settings, vae, held_out, target, basis @ weight + floor)


def _rbf_record(  # noqa: PLR0917 - what two fits have at hand
    step: int, settings: TrainingSettings, vae: VAE, held_out: Tensor, target: Tensor, precision: Tensor
) -> dict[str, float]:
    record = {"step": float(step), "train_loss": 0.5 * (target * precision - precision.log()).sum(1).mean().item()}
    return record | (evaluate(vae, held_out).means() if step % 10 == 0 or step == settings.n_rbf_steps else {})


def _start_rbf(vae: VAE, train: Tensor, settings: TrainingSettings) -> tuple[Tensor, Tensor, Tensor, float]:
    """Give the decoder an RBF network: its weights, to be fitted in place, basis at the codes, r^2 + delta^2, zeta."""
    if vae.training:
        raise ValueError("the model is in train mode; call vae.eval() first")
    device, decoder = _device_of(vae), vae.decoder
    noise = torch.randn(len(train), decoder.latent_dim, generator=stream_of(settings.seed, -1))
    codes, targets = [], []
    for batch, draw in zip(train.split(500), noise.split(500), strict=True):
        mean, std = vae.encoder(batch.to(device))
        codes.append(mean + std * draw.to(device))
        targets.append((batch.to(device) - decoder.mean_net(codes[-1])).square().flatten(1) + settings.dither_std**2)
    code, target = torch.cat(codes), torch.cat(targets)
    centres, bandwidths = place_centres(code, settings.n_centres, settings.bandwidth_factor, settings.seed)
    weight = (1 / target.mean(0)).expand(settings.n_centres, -1)
    floor = settings.max_std**-2
    decoder.std_net = RBFPrecision(centres, bandwidths, weight, floor=floor, data_shape=decoder.data_shape).to(device)
    return decoder.std_net.weight, decoder.std_net.basis(code), target, floor


def train_gan(
    gan: GAN, train: Tensor, held_out: Tensor, settings: GANSettings, *, checkpoint: Path | None = None
) -> Records:
    r"""Train a GAN in place; yields a record an epoch.

    In turn, a step of the discriminator D and one of the generator g lower

    .. math:: L_D &= E_x\, s(-D(x)) + E_z\, s(D(g(z))) + \tfrac\gamma2 E_x \|\nabla_x D(x)\|^2, \\
              L_g &= E_z\, s(-D(g(z))), \qquad s(a) = \log(1 + e^a):

    the non-saturating losses of Goodfellow et al. (2014) with the penalty R1 on real images of Mescheder et al. (2018),
    the simplest combination that is known to converge where the data lie on a manifold, as these do.

    Parameters
    ----------
    gan
        The model; trained on the device it is on, left in eval mode, its generator with averaged weights.
    train, held_out
        Images (n, 1, 28, 28) in [0, 1].
    settings
        See :class:`GANSettings`. Epoch i draws its batches and latent points from (seed, i) alone.
    checkpoint
        Where to save after each epoch; see :func:`train_vae`.

    Yields
    ------
    dict
        epoch (from 1), seconds, discriminator_loss, generator_loss (means over the epoch, nats; ``2 log 2`` and
        ``log 2`` where the discriminator cannot tell), gradient_norm (root mean square of D's on real images),
        distance (mean distance of held-out images to the nearest of 4,000 generated ones, root mean square of pixels).

    Raises
    ------
    lgi.artifacts.ArtifactError
        If the checkpoint is damaged or of other settings.

    References
    ----------
    Mescheder, Geiger, Nowozin, "Which training methods for GANs do actually converge?", ICML 2018. Karras et al.,
    "Analyzing and improving the image quality of StyleGAN", CVPR 2020, for the interval and the average.
    """
    device, d = _device_of(gan), gan.generator.latent_dim
    average = AveragedModel(gan.generator, multi_avg_fn=get_ema_multi_avg_fn(settings.averaging))
    # No momentum (Mescheder et al. 2018): the gradient of a game turns.
    of_generator, of_discriminator = optimizers = [
        Adam(network.parameters(), lr=settings.learning_rate, betas=(0.0, 0.99))
        for network in (gan.generator, gan.discriminator)
    ]
    identity = {"settings": settings, "architecture": gan.architecture, "n": [len(train), len(held_out)]}
    run = _Run(nn.ModuleList([gan, average]), optimizers, identity, checkpoint)
    yield from run.history
    for epoch in range(len(run.history), settings.epochs):
        start = time.perf_counter()
        gan.train()
        stream = stream_of(settings.seed, epoch)
        sums = {"discriminator_loss": 0.0, "generator_loss": 0.0}
        squared_norms = []
        n_batches = math.ceil(len(train) / settings.batch_size)
        for step, (batch, progress) in enumerate(_batches(len(train), settings, epoch, stream)):
            for optimizer in optimizers:
                _set_rate(optimizer, settings.learning_rate * min(1.0, 2 * (1 - progress)))
            noise = torch.randn(2, len(batch), d, generator=stream).to(device)
            x = train[batch].to(device)
            penalised = step % settings.penalty_interval == 0
            logistic, squared_norm = _discriminator_losses(gan, x, noise[0], penalised=penalised)
            sums["discriminator_loss"] += logistic.item() / n_batches
            if penalised:
                squared_norms.append(squared_norm.item())
            weight = settings.penalty_interval * settings.gradient_penalty / 2
            _descend(of_discriminator, logistic + weight * squared_norm)

            # Gradients reach the generator through the discriminator, whose own are not wanted.
            gan.discriminator.requires_grad_(False)
            loss = softplus(-gan.discriminator(gan.generator(noise[1]))).mean()
            sums["generator_loss"] += loss.item() / n_batches
            _descend(of_generator, loss)
            gan.discriminator.requires_grad_(True)
            average.update_parameters(gan.generator)
        gan.eval()
        average.eval()
        record = {"epoch": float(epoch + 1), "seconds": time.perf_counter() - start}
        record |= sums | {"gradient_norm": math.sqrt(sum(squared_norms) / len(squared_norms))}
        record["distance"] = distance_to_generated(cast(ImageGenerator, average.module), held_out).mean().item()
        yield run.keep(record)
    gan.generator.load_state_dict(average.module.state_dict())
    gan.eval()


def _discriminator_losses(gan: GAN, x: Tensor, z: Tensor, *, penalised: bool) -> tuple[Tensor, Tensor]:
    """Logistic loss, and mean squared norm of the discriminator's gradient at real images; 0 unless penalised."""
    with torch.no_grad():
        generated = gan.generator(z)
    logit = gan.discriminator(x.requires_grad_(penalised))
    loss = softplus(-logit).mean() + softplus(gan.discriminator(generated)).mean()
    if not penalised:
        return loss, torch.zeros_like(loss)
    (slope,) = torch.autograd.grad(logit.sum(), x, create_graph=True)
    return loss, slope.square().flatten(1).sum(1).mean()


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    group = optimizer.param_groups[0]
    group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate


class _Replayed:
    """A step of training that a GPU records once, as a CUDA graph, and repeats.

    A step of a small model has hundreds of small kernels, which take less time than to launch them one by one. Batches
    of another size than the first are computed as they come.
    """

    def __init__(self, step: Callable[..., Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.step, self.model, self.optimizer = step, model, optimizer
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.graph is None:
            self._record(inputs)
        assert self.graph is not None
        if any(x.shape != kept.shape for x, kept in zip(inputs, self.inputs, strict=True)):
            return self.step(*inputs)
        for x, kept in zip(inputs, self.inputs, strict=True):
            kept.copy_(x)
        self.graph.replay()
        return self.result

    def _record(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = [x.clone() for x in inputs]
        weights = copy.deepcopy(self.model.state_dict())
        known = {p: {name: x.clone() for name, x in of_p.items()} for p, of_p in self.optimizer.state.items()}
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            # Libraries choose their kernels, and the optimiser makes its state, before it is recorded.
            for _ in range(3):
                self.step(*self.inputs)
        torch.cuda.current_stream().wait_stream(beside)
        # As if these steps had not been.
        self.model.load_state_dict(weights)
        for p, of_p in self.optimizer.state.items():
            for name, x in of_p.items():
                x.copy_(known[p][name] if p in known else torch.zeros_like(x))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.result = self.step(*self.inputs)
        self.graph = graph


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@torch.no_grad()
def distance_to_generated(generator: ImageGenerator, images: Tensor, *, n_samples: int = 4000, seed: int = 0) -> Tensor:
    """Distance of images to the nearest of many generated ones: large for a digit that is never generated.

    Parameters
    ----------
    generator
        In eval mode.
    images
        (n, 1, 28, 28).
    n_samples, seed
        Number of latent points drawn from N(0, I), and their seed.

    Returns
    -------
    Tensor
        (n,), root mean square of pixels.
    """
    device = _device_of(generator)
    z = torch.randn(n_samples, generator.latent_dim, generator=stream_of(seed)).to(device)
    nearest = torch.full((len(images),), torch.inf, device=device)
    for part in z.split(500):
        distance = torch.cdist(images.to(device).flatten(1), generator(part).flatten(1))
        nearest = torch.minimum(nearest, distance.amin(1))
    return nearest / math.sqrt(images[0].numel())


def place_centres(codes: Tensor, n_centres: int, bandwidth_factor: float, seed: int) -> tuple[Tensor, Tensor]:
    r"""Centres and bandwidths of an RBF network by k-means (scikit-learn).

    .. math:: \lambda_k = \tfrac12 (a\, s_k)^{-2},\qquad s_k = \frac{1}{|C_k|}\sum_{z \in C_k} \|z - c_k\|

    A cluster of coincident codes has no spread; it takes half the distance to the nearest other centre.

    Parameters
    ----------
    codes
        (n, d).
    n_centres, bandwidth_factor, seed
        Number of clusters, a, and the seed of k-means.

    Returns
    -------
    tuple of Tensor
        c (n_centres, d) and lambda (n_centres,), on the device and in the dtype of the codes.

    Raises
    ------
    ValueError
        If there are fewer distinct codes than centres: some cluster would be empty.

    References
    ----------
    Arvanitidis, Hansen, Hauberg, "Latent space oddity", ICLR 2018, sec. 4.
    """
    from sklearn.cluster import KMeans  # heavy, and only training needs it

    points = codes.detach().cpu().double().numpy()
    if len(np.unique(points, axis=0)) < n_centres:
        raise ValueError(f"{n_centres} centres need as many distinct codes, got {len(np.unique(points, axis=0))}")
    means = KMeans(n_centres, n_init=4, random_state=seed).fit(points)
    centres = torch.from_numpy(means.cluster_centers_)
    distance = torch.from_numpy(np.linalg.norm(points - means.cluster_centers_[means.labels_], axis=1))
    label = torch.from_numpy(means.labels_).long()
    spread = torch.zeros(n_centres, dtype=distance.dtype).scatter_reduce(0, label, distance, "mean", include_self=False)
    if n_centres > 1:
        gaps = (centres[:, None] - centres).norm(dim=-1).fill_diagonal_(math.inf).amin(1)
        spread = torch.where(spread > 1e-6 * gaps, spread, gaps / 2)
    bandwidths = 0.5 / (bandwidth_factor * spread) ** 2
    return centres.to(codes), bandwidths.to(codes)


@torch.no_grad()
def pixelwise_std(vae: VAE, images: Tensor, settings: TrainingSettings) -> RBFPrecision:
    """Best constant std of each dithered pixel: what the RBF network must beat, beyond knowing the black frame."""
    parts = [vae.decoder.mean_net(vae.encoder(x)[0]) - x for x in images.to(_device_of(vae)).split(500)]
    precision = 1 / (torch.cat(parts).square().mean(0) + settings.dither_std**2).flatten()
    floor = settings.max_std**-2
    # one basis function so wide that it is 1 everywhere
    centre, bandwidth = precision.new_zeros(1, vae.decoder.latent_dim), precision.new_full((1,), 1e-30)
    weight = (precision - floor).clamp(min=0)[None]
    return RBFPrecision(centre, bandwidth, weight, floor=floor, data_shape=vae.decoder.data_shape)


# Raised by hand when checkpoints are written differently.
_CHECKPOINT_FORMAT = 3


class _Run:
    """What has been trained of a model, epoch by epoch: it goes on from a checkpoint if there is one."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Adam], identity: Mapping[str, Any], checkpoint: Path | None
    ) -> None:
        self.parts: list[Any] = [model, *optimizers]
        self.about: dict[str, Any] = {"name": "checkpoint", "settings": identity, "version": RECIPE_VERSION}
        self.checkpoint = checkpoint
        self.history: list[dict[str, float]] = []
        if checkpoint is None:
            return
        remedy = "Move it away or else delete it: training then begins anew."
        try:
            saved = artifacts.load(checkpoint, **self.about, remedy=remedy)
        except artifacts.ArtifactError:
            if artifacts.exists(checkpoint):
                raise
            return  # there was none, or another process has just finished and removed it
        if saved.record.get("format") == _CHECKPOINT_FORMAT:  # else training begins anew, and soon writes over it
            content = io.BytesIO(saved.tensors["states"].numpy().tobytes())
            states = torch.load(content, map_location="cpu", weights_only=True)
            for part, state in zip(self.parts, states, strict=True):
                if isinstance(part, Adam):  # the checkpoint's machine may have stepped in another way (fused, on a GPU)
                    state["param_groups"] = part.state_dict()["param_groups"]
                part.load_state_dict(state)
            self.history += saved.record["history"]

    def keep(self, record: dict[str, float]) -> dict[str, float]:
        """Write the state after an epoch, with its record."""
        if not all(map(math.isfinite, record.values())):
            settings = self.about["settings"]["settings"]
            raise FloatingPointError(f"training diverged in epoch {record['epoch']:g}; lower learning_rate: {settings}")
        self.history.append(record)
        if self.checkpoint is not None:
            content = io.BytesIO()
            torch.save([part.state_dict() for part in self.parts], content)
            states = {"states": np.frombuffer(content.getbuffer(), np.uint8)}
            kept = {"history": self.history, "format": _CHECKPOINT_FORMAT}
            artifacts.save(self.checkpoint, states, kept, **self.about)
        return record


def _batches(
    n_images: int, settings: TrainingSettings | GANSettings, epoch: int, stream: torch.Generator
) -> Iterator[tuple[Tensor, float]]:
    """Images of each step of an epoch, and the share of the training that is done before it."""
    batches = torch.randperm(n_images, generator=stream).split(settings.batch_size)
    for step, batch in enumerate(batches):
        yield batch, (epoch + step / len(batches)) / settings.epochs


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def stream_of(*key: int) -> torch.Generator:
    """Generator on the CPU whose draws depend on the key alone, whatever was drawn before and wherever it is used."""
    entropy = [k & 0xFFFFFFFF for k in key]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1)
