"""Checkpoints of an earlier format: training begins anew."""

import torch

from lgi import artifacts
from lgi.models import VAE, Architecture
from lgi.training import RECIPE_VERSION, TrainingSettings, train_vae


def test_checkpoint_of_an_earlier_format_is_ignored(tmp_path):
    images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    architecture = Architecture(channels=(2, 4), hidden=8)
    settings = TrainingSettings(epochs=1, batch_size=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = VAE(architecture)
    identity = {"settings": settings, "architecture": architecture, "n": [8, 8]}
    # As it was written first: one optimizer, without a name.
    old = {f"model.{key}": value * 0 for key, value in vae.state_dict().items()} | {"optimizer.0.step": torch.ones(())}
    record = {"history": [{"epoch": 1.0}]}
    path = tmp_path / "run"
    artifacts.save(path, old, record, name="checkpoint", settings=identity, version=RECIPE_VERSION)
    records = list(train_vae(vae, images, images, settings, checkpoint=path))
    assert [{"epoch", "train_elbo"} <= set(r) for r in records] == [True]
    # What is written over it is read.
    assert list(train_vae(vae, images, images, settings, checkpoint=path)) == records
