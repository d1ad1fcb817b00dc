"""The table: a generator a function, which says in its decorator what is expected of it."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Case:
    """A generator of the table."""

    make: Callable[[], Any]  # the generator, or (generator, the model in it)
    d: int = 2
    tolerance: float = 1e-5  # of the metric in float32, relative to differences in float64
    feature_map: Callable[[Tensor], Tensor] | None = None
    place: Callable[[Tensor], Tensor] = lambda z: z  # normal numbers to points
    dtype: torch.dtype = torch.float32
    refusal: str | None = None  # what the error says, where it is refused
    since: str = "2.5"  # the torch that has the derivatives

    @property
    def name(self) -> str:
        return self.make.__name__

    def made(self, dtype: torch.dtype) -> tuple[Callable[[Tensor], Any], nn.Module | None]:
        """The generator and its model, always with the same weights."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations, of what people use
            torch.manual_seed(1)
            found = self.make()
        generator, model = found if isinstance(found, tuple) else (found, found)
        if isinstance(model, nn.Module):
            model.to(dtype)
        return generator, model if isinstance(model, nn.Module) else None

    def points(self, n: int) -> Tensor:
        z = torch.randn(n, self.d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        return self.place(z)


WORKS: list[Case] = []
REFUSED: list[Case] = []


def works(**options: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    return lambda make: (WORKS.append(Case(make, **options)), make)[1]


def refused(refusal: str, **options: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    return lambda make: (REFUSED.append(Case(make, refusal=refusal, **options)), make)[1]


class Then(nn.Module):
    """A module whose forward is a function of the module and z."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self._forward(self, *inputs)


def mlp(d: int = 2, n: int = 24, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d, 16), activation(), nn.Linear(16, n))


def image(d: int = 2, channels: int = 8, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """Images 3 x 8 x 8 by transposed convolutions."""
    layers = [nn.Linear(d, channels * 4), nn.Unflatten(1, (channels, 2, 2)), nn.ConvTranspose2d(channels, 8, 4, 2, 1)]
    model = nn.Sequential(*layers, norm(8), nn.SiLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Sigmoid())
    return model.eval()


class VAE(nn.Module):
    """As people write them: encoder, decoder, and a forward from data to data."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(24, 4), nn.BatchNorm1d(4))
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 24))
        self.z: Tensor | None = None

    def decode(self, z: Tensor) -> Tensor:
        self.z = z
        return self.decoder(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encoder(x).chunk(2, dim=-1)
        return self.decode(mean), mean, logvar


class NotFlatError(Exception):
    """A class among the names of a function has attributes that are not those of an object of it."""


# --- layers ----------------------------------------------------------------------------------------------------------


@works()
def dense() -> Any:
    return mlp()


@works(d=1)
def one_latent_dimension() -> Any:
    return mlp(1)


@works(d=512)
def many_latent_dimensions() -> Any:
    return mlp(512, 600)


@works(d=6)
def fewer_outputs_than_latent_dimensions() -> Any:
    return mlp(6, 4)


@works()
def transposed_convolutions_with_batch_norm() -> Any:
    return image()


@works()
def group_norm() -> Any:
    return image(norm=lambda n: nn.GroupNorm(2, n)).train()


@works()
def layer_norm_in_train_mode() -> Any:
    return nn.Sequential(nn.Linear(2, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 24))


@works()
def instance_norm() -> Any:
    return image(norm=nn.InstanceNorm2d)


@works()
def spectral_norm() -> Any:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 16)), nn.Tanh(), nn.Linear(16, 24)).eval()


@works()
def spectral_norm_of_the_older_form() -> Any:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 16)), nn.Tanh(), nn.Linear(16, 24)).eval()


@works()
def weight_norm_of_both_forms() -> Any:
    new = nn.utils.parametrizations.weight_norm(nn.Linear(16, 24))
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 16)), nn.Tanh(), new)


@works()
def in_place() -> Any:
    parts = (nn.Linear(2, 16), nn.SiLU(inplace=True), nn.ELU(inplace=True), nn.Linear(16, 24))
    return Then(lambda self, z: self.net(z.mul_(2)).add_(1).sigmoid_(), net=nn.Sequential(*parts))


@works()
def upsampling_and_pixel_shuffle() -> Any:
    up = (nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.PixelShuffle(2))
    return nn.Sequential(nn.Linear(2, 8), nn.Unflatten(1, (2, 2, 2)), *up, nn.Upsample(scale_factor=2), nn.AvgPool2d(2))


@works()
def bicubic_and_reflection() -> Any:
    def forward(self: Any, z: Tensor) -> Tensor:
        x = functional.pad(self.net(z).view(-1, 1, 4, 4), (1, 1, 1, 1), mode="reflect")
        return functional.interpolate(x, scale_factor=2, mode="bicubic", antialias=True)

    return Then(forward, net=mlp(n=16))


@works(since="2.15")
def grid_sample() -> Any:
    def forward(self: Any, z: Tensor) -> Tensor:
        theta = torch.stack([z.cos(), z.sin()], dim=1)
        grid = functional.affine_grid(functional.pad(theta, (0, 1)), [len(z), 1, 6, 6], align_corners=False)
        return functional.grid_sample(self.image.expand(len(z), -1, -1, -1), 0.5 * grid, align_corners=False)

    model = Then(forward)
    # Linear between its pixels: bilinear sampling has kinks.
    model.register_buffer("image", (torch.arange(8.0)[:, None] + 2 * torch.arange(8.0))[None, None])
    return model


@works()
def modulated_convolution_with_fixed_noise() -> Any:
    """As in StyleGAN 2: weights of a row's own, one grouped convolution, noise that is a buffer."""

    def forward(self: Any, z: Tensor) -> Tensor:
        style = self.mapping(z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt() + z)
        weight = self.weight * style[:, None, :, None, None]
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        x = self.constant.repeat(1, len(z), 1, 1)
        x = functional.conv2d(x, weight.flatten(0, 1), padding=1, groups=len(z)).view(len(z), 6, 4, 4)
        return functional.leaky_relu(x + 0.1 * self.noise + 3, 0.2)

    model = Then(forward, mapping=mlp(n=5), weight=nn.Parameter(torch.randn(6, 5, 3, 3)))
    model.constant = nn.Parameter(torch.randn(1, 5, 4, 4))
    model.register_buffer("noise", torch.randn(4, 4))
    return model


# --- attention, recurrence, sound ------------------------------------------------------------------------------------


def sequence(inner: Callable[..., Tensor], **parts: Any) -> nn.Module:
    """Five tokens of width 8."""

    def forward(self: Any, z: Tensor) -> Tensor:
        return self.head(inner(self, self.tokens(z).view(-1, 5, 8)))

    return Then(forward, tokens=nn.Linear(2, 40), head=nn.Linear(8, 6), **parts).eval()


_LAYER = {"d_model": 8, "nhead": 2, "dim_feedforward": 16, "batch_first": True, "activation": "gelu"}


@works(tolerance=1e-4)
def transformer_encoder() -> Any:
    return sequence(lambda self, x: self.body(x), body=nn.TransformerEncoder(nn.TransformerEncoderLayer(**_LAYER), 2))


@works(tolerance=1e-4)
def transformer_decoder() -> Any:
    body = nn.TransformerDecoder(nn.TransformerDecoderLayer(**_LAYER), 2)
    return sequence(
        lambda self, x: self.body(self.query.expand(len(x), -1, -1), x),
        body=body,
        query=nn.Parameter(torch.randn(1, 5, 8)),
    )


@works()
def scaled_dot_product_attention() -> Any:
    return sequence(
        lambda self, x: functional.scaled_dot_product_attention(self.q(x), x, x, is_causal=True), q=nn.Linear(8, 8)
    )


@works()
def multihead_attention() -> Any:
    return sequence(lambda self, x: self.body(x, x, x)[0], body=nn.MultiheadAttention(8, 2, batch_first=True))


@works()
def gru() -> Any:
    return sequence(lambda self, x: self.body(x)[0], body=nn.GRU(8, 8, batch_first=True))


@works()
def lstm_that_feeds_itself() -> Any:
    def forward(self: Any, z: Tensor) -> Tensor:
        state, frames = (self.start(z), torch.zeros_like(self.start(z))), []
        for _ in range(4):
            state = self.cell(state[0], state)
            frames.append(state[0])
        return torch.stack(frames, dim=1)

    return Then(forward, start=nn.Linear(2, 6), cell=nn.LSTMCell(6, 6))


@works()
def audio() -> Any:
    """A spectrum's inverse Fourier transform, and dilated convolutions."""

    def forward(self: Any, z: Tensor) -> Tensor:
        wave = torch.fft.irfft(torch.view_as_complex(self.spectrum(z).view(-1, 9, 2)))
        return self.filter(wave[:, None]).tanh()

    return Then(forward, spectrum=mlp(n=18), filter=nn.Conv1d(1, 2, 3, dilation=2, padding=2))


@works()
def coordinates_in_a_picture() -> Any:
    """An implicit representation: the network is asked at each pixel."""

    def forward(self: Any, z: Tensor) -> Tensor:
        at = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 4), indexing="ij"), -1).to(z)
        return self.net(torch.cat([at.expand(len(z), 4, 4, 2), z[:, None, None].expand(-1, 4, 4, -1)], -1)).sin()

    return Then(forward, net=mlp(4, 3))


@works(d=16)
def decoder_of_a_latent_diffusion_model() -> Any:
    """Group norm, attention over pixels, upsampling; latents 4 x 2 x 2."""

    def attend(self: Any, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        return x + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).view_as(x)

    block = Then(attend, norm=nn.GroupNorm(4, 8), qkv=nn.Conv2d(8, 24, 1))
    up = (nn.Upsample(scale_factor=2), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
    return nn.Sequential(nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 8, 3, padding=1), block, *up)


@works(d=6)
def normalising_flow() -> Any:
    """Affine couplings: as many outputs as latent dimensions."""

    def forward(self: Any, z: Tensor) -> Tensor:
        for net in self.nets:
            kept, changed = z.chunk(2, dim=1)
            scale, shift = net(kept).chunk(2, dim=1)
            z = torch.cat([changed * scale.tanh().exp() + shift, kept], dim=1)
        return z

    return Then(forward, nets=nn.ModuleList([mlp(3, 6) for _ in range(4)]))


@works()
def decompositions() -> Any:
    """Whose last digit depends on where in memory their matrix lies."""

    def forward(self: Any, z: Tensor) -> Tensor:
        A = self.net(z).view(-1, 4, 6)
        return torch.cat([torch.linalg.svdvals(A), torch.linalg.eigvalsh(A @ A.mT)], dim=1)

    return Then(forward, net=mlp())


# --- how they are called ---------------------------------------------------------------------------------------------


@works()
def bound_method() -> Any:
    model = VAE().eval()
    return model.decode, model


@works()
def decoder_beside_an_encoder_in_train_mode() -> Any:
    model = VAE()
    model.decoder.eval()
    return lambda z: model.decode(z).sigmoid() if z.ndim == 2 else NotFlatError(), model


@works()
def partial_with_a_label() -> Any:
    model = Then(lambda self, label, z: self.net(torch.cat([z, self.label(label).expand(len(z), -1)], 1)),
                 net=mlp(5), label=nn.Embedding(4, 3))  # fmt: skip
    return functools.partial(model, torch.tensor([2])), model


@works()
def single_points_by_vmap() -> Any:
    model = mlp()
    return torch.func.vmap(lambda z: model(z).view(4, 6)), model


@works()
def latents_that_are_not_flat() -> Any:
    return nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 3, 2, 2), nn.Tanh())


WORKS[-1] = Case(latents_that_are_not_flat, d=8)


@works()
def scripted() -> Any:
    return torch.jit.script(mlp())


@works()
def traced() -> Any:
    return torch.jit.trace(mlp(), torch.zeros(1, 2))


@works()
def compiled() -> Any:
    return torch.compile(mlp(), backend="eager")


@works(dtype=torch.bfloat16, tolerance=0.1)
def half_precision_with_points_in_half_precision() -> Any:
    return mlp()


@works()
def checkpointed() -> Any:
    return Then(lambda self, z: checkpoint(self.net, z, use_reentrant=False), net=mlp())


@works()
def hooked() -> Any:
    model, kept = mlp(), []
    model[1].register_full_backward_hook(lambda *_: None)
    model[1].register_forward_hook(lambda *given: kept.append(len(given)))
    return model


@works()
def keeps_what_it_has_seen() -> Any:
    def forward(self: Any, z: Tensor) -> Tensor:
        self.features = self.net[0](z)
        self.calls += 1
        self.n_calls = self.n_calls + 1
        return self.net[2](self.net[1](self.features))

    model = Then(forward, net=mlp(), n_calls=0)
    model.register_buffer("calls", torch.zeros(1))
    return model


@works()
def collects_what_it_has_seen() -> Any:
    """A hook that keeps features in a dict and in a list of the model, as people do to look at them."""
    model = mlp()
    model.seen, model.all_seen = {}, []
    model[1].register_forward_hook(lambda module, inputs, output: model.seen.update(features=output))
    model[0].register_forward_hook(lambda module, inputs, output: model.all_seen.append(output))
    return model


@works()
def output_in_a_buffer_that_is_used_again() -> Any:
    model, out = mlp(), torch.zeros(1000, 24)

    def forward(z: Tensor) -> Tensor:
        out[: len(z)] = model(z)
        return out[: len(z)]

    return lambda z: forward(z) if z.dtype == out.dtype else model(z), model


@works()
def scripted_and_frozen() -> Any:
    """Without parameters and mode, so that it keeps its dtype."""
    model = mlp().eval()
    frozen = torch.jit.freeze(torch.jit.script(model))
    return lambda z: frozen(z) if z.dtype == torch.float32 else model(z), model


# --- own derivatives -------------------------------------------------------------------------------------------------


class _Blur(torch.autograd.Function):
    """In the older form, as StyleGAN's operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return u * ctx.saved_tensors[0].cos()


class _Newer(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return u * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx: Any, v: Tensor) -> Tensor:
        return v * ctx.saved_tensors[0].cos()


class _Once(_Blur):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return u * ctx.saved_tensors[0].cos()


@works()
def function_of_the_older_form() -> Any:
    return Then(lambda self, z: _Blur.apply(self.net(z)), net=mlp())


@works()
def function_of_the_newer_form() -> Any:
    return Then(lambda self, z: _Newer.apply(self.net(z)), net=mlp())


@works()
def gradient_of_an_energy() -> Any:
    """Steps downhill, as energy-based models decode."""

    def forward(self: Any, z: Tensor) -> Tensor:
        with torch.enable_grad():
            x = self.first(z)
            x = x if x.requires_grad else x.requires_grad_()
            (step,) = torch.autograd.grad(self.energy(x).square().sum(), x, create_graph=True)
        return x - 0.1 * step

    return Then(forward, first=nn.Linear(2, 8), energy=mlp(8, 3))


@works(since="2.9")
def distances_to_centres() -> Any:
    model = Then(lambda self, z: self.net((-torch.cdist(z, self.centres)).exp()), net=mlp(4))
    model.register_buffer("centres", 3 * torch.randn(4, 2))
    return model


# --- distributions ---------------------------------------------------------------------------------------------------


@works()
def std_from_a_log_variance() -> Any:
    def forward(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.net(z).chunk(2, dim=1)
        return mean, (0.5 * logvar).exp()

    return Then(forward, net=mlp())


@works()
def mean_and_stddev_of_a_normal() -> Any:
    def forward(self: Any, z: Tensor) -> list[Tensor]:
        mean, spread = self.net(z).chunk(2, dim=1)
        p = torch.distributions.Independent(torch.distributions.Normal(mean, functional.softplus(spread)), 1)
        return [p.mean, p.stddev]

    return Then(forward, net=mlp())


@works(feature_map=lambda p: 2 * p.sqrt())
def categorical_by_fisher_rao() -> Any:
    return nn.Sequential(mlp(), nn.Unflatten(1, (4, 6)), nn.Softmax(dim=-1))


@works(feature_map=lambda rate: 2 * rate.sqrt())
def counts_by_fisher_rao() -> Any:
    return nn.Sequential(mlp(), nn.Softplus())


# --- bounded latent spaces -------------------------------------------------------------------------------------------


@works(place=lambda z: torch.special.ndtr(2 * z), tolerance=1e-4)
def cube_by_the_inverse_normal() -> Any:
    def forward(self: Any, u: Tensor) -> Tensor:
        return self.net(torch.special.ndtri(u.double()).to(u))

    return Then(forward, net=mlp())


@works(place=lambda z: z / (1.001 + torch.linalg.vector_norm(z, dim=1, keepdim=True)), tolerance=1e-4)
def poincare_ball() -> Any:
    def forward(self: Any, z: Tensor) -> Tensor:
        r = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        return self.net(z * torch.atanh(r) / r)

    return Then(forward, net=mlp())


@works(place=lambda z: z / torch.linalg.vector_norm(z, dim=1, keepdim=True))
def normalised_latents() -> Any:
    return Then(lambda self, z: self.net(functional.normalize(z, dim=1)), net=mlp())


# --- refused ---------------------------------------------------------------------------------------------------------


@refused(r"^BatchNorm1d '1' of Sequential is in train mode.*eval\(\)")
def bound_method_in_train_mode() -> Any:
    model = VAE()
    return model.decode, model


@refused(r"^BatchNorm1d '1' of Sequential is in train mode.*eval\(\)")
def partial_in_train_mode() -> Any:
    model = VAE()
    return functools.partial(lambda vae, z: vae.decode(z), model), model


@refused("other points of the batch|more than 1 value")
def own_batch_norm_in_train_mode() -> Any:
    def forward(self: Any, z: Tensor) -> Tensor:
        x = self.net(z)[:, None].expand(-1, 2, -1).transpose(1, 2)
        return functional.batch_norm(x, self.mean, self.var, training=self.training)

    model = Then(forward, net=mlp())
    model.register_buffer("mean", torch.zeros(24))
    model.register_buffer("var", torch.ones(24))
    return model.forward, model


_EACH_CALL = r"in train mode.*each call changes it.*eval\(\)"


@refused(_EACH_CALL)
def spectral_norm_in_train_mode() -> Any:
    return spectral_norm().train()


@refused(_EACH_CALL)
def spectral_norm_of_the_older_form_in_train_mode() -> Any:
    return spectral_norm_of_the_older_form().train()


@refused(_EACH_CALL)
def instance_norm_with_statistics_in_train_mode() -> Any:
    return image(norm=lambda n: nn.InstanceNorm2d(n, track_running_stats=True)).train()


@refused("has no running statistics.*in eval mode too.*track_running_stats=True")
def batch_norm_without_statistics() -> Any:
    return image(norm=lambda n: nn.BatchNorm2d(n, track_running_stats=False))


@refused("no parameters yet: call the model once")
def lazy() -> Any:
    return nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.Linear(16, 24))


@refused("other points of the batch")
def minibatch_statistics() -> Any:
    return Then(lambda self, z: self.net(z) + 0.01 * z.std(0, correction=0).mean(), net=mlp())


@refused(r"random.*fix the noise|random.*Fix the noise")
def little_noise() -> Any:
    return Then(lambda self, z: self.net(z) + 0.003 * torch.randn(len(z), 1), net=mlp())


@refused("output is random.*Fix the noise")
def noise_drawn_by_the_first_call() -> Any:
    """It would stay as it is, were the model not put back after each call."""

    def forward(self: Any, z: Tensor) -> Tensor:
        x = self.net(z)
        self.noise = 0.1 * torch.randn_like(x[:1]) if self.noise is None else self.noise
        return x + self.noise

    return Then(forward, net=mlp(), noise=None)


@refused(r"place among them.*one row, noise\[:1\]")
def noise_of_a_fixed_batch() -> Any:
    model, noise = mlp(), torch.randn(1000, 24)
    return lambda z: model(z) + noise[: len(z)], model


@refused(r"place among them.*one row")
def labels_of_a_fixed_batch() -> Any:
    model, labels = mlp(5), functional.one_hot(torch.arange(1000) % 3)
    return lambda z: model(torch.cat([z, labels[: len(z)]], dim=1)), model


@refused("other points of the batch")
def rows_in_another_order() -> Any:
    return Then(lambda self, z: self.net(z).flip(0), net=mlp())


@refused(r"a log-variance\? return \(0\.5 \* logvar\)\.exp\(\)")
def log_variance() -> Any:
    return Then(lambda self, z: self.net(z).chunk(2, dim=1), net=mlp())


@refused(r"VAE is a whole model: give PullbackMetric its \.decoder or \.decode\.")
def whole_vae() -> Any:
    return VAE().eval()


@refused(r"missing the required.*whole model: give PullbackMetric its \.decoder")
def whole_model_without_forward() -> Any:
    model = nn.Module()
    model.decoder = mlp()
    return model


@refused(r"leave away what is neither, lambda z: generator\(z\)\[0\].* its \.decoder")
def whole_autoencoder_that_takes_anything() -> Any:
    return Then(lambda self, x: (self.decoder(x), x, x), decoder=mlp()).eval()


@refused(r"Normal.*return \(p\.mean, p\.stddev\)")
def distribution() -> Any:
    return Then(lambda self, z: torch.distributions.Normal(self.net(z), 1.0), net=mlp())


@refused(r"dict, which holds recon, z: return the tensor, lambda z: generator\(z\)\['recon'\]")
def mapping() -> Any:
    return Then(lambda self, z: {"recon": self.net(z), "z": z}, net=mlp())


@dataclass
class DecoderOutput:
    sample: Tensor


@refused(r"DecoderOutput, which holds sample: return the tensor, lambda z: generator\(z\)\.sample")
def dataclass_output() -> Any:
    return Then(lambda self, z: DecoderOutput(self.net(z)), net=mlp())


@refused(r"where the second output is no standard deviation, lambda z: generator\(z\)\[0\]")
def second_output_of_another_kind() -> Any:
    return Then(lambda self, z: (self.net(z), z), net=mlp())


@refused(r"labels.expand\(len\(z\), -1\)")
def labels_for_a_fixed_batch() -> Any:
    return Then(lambda self, z: self.net(torch.cat([z, torch.eye(16, 3)], dim=1)), net=mlp(5))


@refused(r"takes one point, and fails on three.*labels.expand\(len\(z\), -1\)")
def label_for_one_point() -> Any:
    return Then(lambda self, z: self.net(torch.cat([z, torch.eye(1, 3)], dim=1)), net=mlp(5))


@refused(r"row by row, lambda z: torch\.cat\(\[generator\(row\[None\]\) for row in z\]\)")
def batch_of_one() -> Any:
    return Then(lambda self, z: self.net(z[:1]).view(1, 4, 6), net=mlp())


@refused(r"nn\.Unflatten\(1, \(4, 8, 8\)\)", d=16)
def latents_of_an_image() -> Any:
    return nn.Sequential(nn.Conv2d(4, 3, 3), nn.Tanh())


@refused(r"nn\.Unflatten\(1, \(4, 8, 8\)\)", d=16)
def latents_of_an_image_that_are_unpacked() -> Any:
    def forward(self: Any, z: Tensor) -> Tensor:
        n, channels, height, width = z.shape
        return self.net(z.view(n, channels * height * width))

    return Then(forward, net=mlp(16))


@refused(r"latent_dim is \(4, 2, 2\).*nn\.Unflatten\(1, \(4, 2, 2\)\).*latent_dim=16", d=16)
def latent_dim_that_is_a_shape() -> Any:
    return Then(lambda self, z: self.net(z.flatten(1)), net=mlp(16), latent_dim=(4, 2, 2))


@refused("numpy or scikit-learn has no derivative.*torch.autograd.Function")
def numpy_inside() -> Any:
    return lambda z: torch.from_numpy(np.tile(np.sin(z.numpy()), 3))


@refused("numpy or scikit-learn has no derivative.*torch.autograd.Function")
def numpy_outside() -> Any:
    return lambda z: np.tile(np.sin(np.asarray(z)), 3)


@refused("numpy or scikit-learn has no derivative.*torch.autograd.Function")
def numpy_of_detached() -> Any:
    return lambda z: torch.from_numpy(np.tile(np.sin(z.detach().numpy()), 3))


@refused("returns torch.bfloat16 for points in torch.float32: autocast or .half")
def autocast_inside() -> Any:
    def forward(self: Any, z: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(z)

    return Then(forward, net=mlp())


@refused("computes in torch.bfloat16 for points in torch.float32: autocast or .half")
def autocast_inside_and_back() -> Any:
    def forward(self: Any, z: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.net(z)
        return x.float()

    return Then(forward, net=mlp())


@refused("computes in torch.float16 for points in torch.float32.*convert the model")
def half_precision_inside_and_back() -> Any:
    model = mlp().half()
    return lambda z: model(z.half()).float()


@refused("use_reentrant=False")
def checkpointed_in_the_older_form() -> Any:
    return Then(lambda self, z: checkpoint(self.net, z, use_reentrant=True), net=mlp())


@refused("write it in torch operations, without once_differentiable")
def backward_that_has_no_derivative() -> Any:
    return Then(lambda self, z: _Once.apply(self.net(z)), net=mlp())


@refused("cut off from it.*detach")
def detached() -> Any:
    return Then(lambda self, z: self.net(z.detach()), net=mlp())


@refused("contradict each other.*no_grad")
def without_gradients() -> Any:
    model = mlp()
    return torch.no_grad()(model.forward), model


@refused("quantised, with a derivative that is made up.*straight-through.*part after the quantisation")
def straight_through() -> Any:
    """As in VQ-VAEs."""

    def forward(self: Any, z: Tensor) -> Tensor:
        x = self.net(z).view(-1, 4, 6)
        nearest = (x[:, :, None] - self.codes).square().sum(-1).argmin(-1)
        return self.decoder((x + (self.codes[nearest] - x).detach()).flatten(1))

    return Then(forward, net=mlp(), codes=nn.Parameter(torch.randn(5, 6)), decoder=nn.Linear(24, 30))


@refused("changes with z in steps.*round, sign, argmax")
def rounded() -> Any:
    return Then(lambda self, z: (self.net(z) * 255).round() / 255, net=mlp())


@refused("in steps.*a comparison.*or is cut off from it")
def binarised() -> Any:
    """All the same at the first points."""
    return Then(lambda self, z: (self.net(z) + 5 > 0).float(), net=mlp())


@refused("or is cut off from it")
def another_variable() -> Any:
    return Then(lambda self, z: self.net(torch.zeros_like(z)), net=mlp())


@refused("no second derivative of that operation.*without sdpa_kernel")
def attention_by_a_fused_kernel() -> Any:
    def attend(self: Any, x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]

    return sequence(attend)


@refused("no second derivative of that operation")
def activation_without_a_second_derivative() -> Any:
    return mlp(activation=nn.Hardsigmoid)


@refused("Whole numbers have no derivative.*after nn.Embedding")
def discrete_latents() -> Any:
    return nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(16, 24))


@refused(r"missing 1 required positional argument: 'y'.*lambda z: generator\(z, label.expand\(len\(z\), -1\)\)")
def label_that_is_not_given() -> Any:
    class Conditional(nn.Module):
        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return torch.cat([z, y], dim=1)

    return Conditional()


@refused("torch.uint8.*return what is rounded before it is")
def bytes_of_an_image() -> Any:
    return Then(lambda self, z: (255 * self.net(z).sigmoid()).to(torch.uint8), net=mlp())


@refused("torch.complex64.*torch.view_as_real")
def complex_numbers() -> Any:
    return Then(lambda self, z: torch.fft.rfft(self.net(z)), net=mlp())


@refused("floating-point tensor or a pair")
def classes() -> Any:
    return Then(lambda self, z: self.net(z).argmax(1, keepdim=True), net=mlp())
