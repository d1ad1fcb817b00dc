"""Models of others, by their architectures: those of the paper's authors, and an autoencoder of diffusers."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def _block(n_in: int, n_out: int, kernel: int) -> nn.Sequential:
    convolution = nn.utils.spectral_norm(nn.ConvTranspose2d(n_in, n_out, kernel, stride=2))
    parts = {"ConvTranspose": convolution, "BatchNorm": nn.BatchNorm2d(n_out), "ELU": nn.ELU()}
    block = nn.Sequential()
    for name, part in parts.items():
        block.add_module(name, part)
    return block


class _Std(nn.Module):
    """``(W exp(-bandwidth |z - centre|^2) + zeta)^(-1/2)``."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Linear(64, 784, bias=False)
        for name, shape in (("bandwidth", (64,)), ("centers", (64, 16)), ("zeta", (1,))):
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, z: Tensor) -> Tensor:
        squared = (z[:, None] - self.centers).square().sum(-1)
        return (self.W((-self.bandwidth * squared).exp()) + self.zeta).rsqrt().view(-1, 1, 28, 28)


class Authors(nn.Module):
    """Decoder of the authors' VAE (with a standard deviation) or generator of their BiGAN, d = 16."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        self.lin = nn.Linear(16, 1152)
        channels = {"vae16_decoder": (32, 32, 32), "bigan16_generator": (32, 16, 3)}[name]
        blocks = [_block(channels[0], channels[1], 3), _block(channels[1], channels[2], 4)]
        last = nn.Conv2d(channels[2], 1, 1)
        stochastic = name == "vae16_decoder"
        self.conv = nn.Sequential(*blocks, *([] if stochastic else [last, nn.Tanh()]))
        if stochastic:
            self.Xmean, self.rbfNN = nn.Sequential(last, nn.Tanh()), _Std()
        self.load_state_dict(load_file(folder / f"{name}.safetensors"))
        self.eval()

    def forward(self, z: Tensor) -> Any:
        x = self.conv(self.lin(z).view(-1, 32, 6, 6))
        return (self.Xmean(x), self.rbfNN(z)) if hasattr(self, "Xmean") else x


def autoencoder_of_diffusers() -> nn.Module:
    """The architecture behind latent diffusion, small, with random weights; latents 4 x 4 x 4, images 3 x 8 x 8."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=8,
    ).eval()
