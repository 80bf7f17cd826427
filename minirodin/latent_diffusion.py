"""E15: a second diffusion model, over the latents of people; for anybody, or for whom a text describes."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirodin.config import Config, LatentConfig
from minirodin.diffusion import Diffusion
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.guidance import guided
from minirodin.latents import Latents
from minirodin.sampling import SAMPLERS
from minirodin.shards import config_from, load_weights, read_tensors
from minirodin.training import Trainer
from minirodin.unet import LatentEmbedding, log_snr_embedding, zeroed

KIND = "latent model"


class Block(nn.Module):
    """x + W₂ silu(W₁ adaptive layer norm(x)), modulated as the U-Net's residual blocks are."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), zeroed(nn.Linear(2 * width, width)))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(F.silu(embedding)).chunk(2, dim=1)
        return x + self.mlp(self.norm(x) * (1 + scale) + shift)


class LatentNetwork(nn.Module):
    """A residual MLP: noisy latents, their noise level and, where it is kept, the embedding of a text.

    Args:
        config: width and depth.
        latent: numbers in a latent, and in the embedding of a text.
    """

    def __init__(self, config: LatentConfig, latent: int):
        super().__init__()
        width = config.width
        self.embed = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))
        self.text = LatentEmbedding(latent, width)
        self.enter = nn.Linear(latent, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(config.blocks))
        self.exit = nn.Sequential(nn.LayerNorm(width), zeroed(nn.Linear(width, latent)))

    def forward(self, x: Tensor, log_snr: Tensor, text: Tensor, keep: Tensor) -> Tensor:
        """(B, Z) standardised, (B,), (B, Z) of unit norm, (B,) bool → (B, 1, Z)."""
        embedding = self.embed(log_snr_embedding(log_snr, 128)) + self.text(text, keep)  # (B, W)
        x = self.enter(x)  # (B, W)
        for block in self.blocks:
            x = block(x, embedding)
        return self.exit(x)[:, None]


class LatentModel:
    """The network with the statistics of the latents it learned from, and the fingerprint of their encoder."""

    def __init__(self, network: LatentNetwork, config: Config, mean: Tensor, std: Tensor, encoder: str):
        self.network, self.config, self.mean, self.std, self.encoder = network, config, mean, std, encoder
        self.diffusion = Diffusion(config.latent.diffusion)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> "LatentModel":
        """Read what `train_latent` left; raises `CheckpointError` in one line."""
        path = Path(folder) / "model.safetensors"
        tensors, metadata = read_tensors(path, KIND)
        config = config_from(metadata, path)
        if missing := [key for key in ("mean", "std") if key not in tensors]:
            raise CheckpointError(f"{path} lacks the latents' statistics ({missing[0]}): train it again")
        weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        network = load_weights(LatentNetwork(config.latent, len(tensors["mean"])), weights, path, "network")
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(network, config, tensors["mean"], tensors["std"], metadata.get("encoder", "")).to(device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of its file, as `load` reads them."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        metadata = {"kind": KIND, "config": json.dumps(self.config.to_dict()), "encoder": self.encoder}
        return tensors | {"mean": self.mean, "std": self.std}, metadata

    def to(self, device: str | torch.device) -> "LatentModel":
        """Move to a device, in place."""
        self.network.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def sample(
        self, count: int, text: Tensor | None = None, seed: int = 0, steps: int = 50, guidance_scale: float = 1.0
    ) -> Tensor:
        """Latents of new people, (count, Z) of unit norm.

        Args:
            text: (count, Z) embeddings of what they are to look like (`ImageTextEncoder.texts`); None: like anybody.
            seed: sample i depends on seed + i alone.
            guidance_scale: E14, towards the text.

        Raises:
            CheckpointError: embeddings of another shape. ConfigError: fewer than one step.
        """
        width, device = len(self.mean), self.mean.device
        if text is not None and tuple(text.shape) != (count, width):
            raise CheckpointError(f"embeddings have shape {tuple(text.shape)}, the model wants ({count}, {width})")
        streams = (torch.Generator().manual_seed(seed + i) for i in range(count))
        noise = torch.stack([torch.randn(width, generator=g) for g in streams]).to(device)
        scale = 0.0 if text is None else guidance_scale
        text = torch.zeros(count, width, device=device) if text is None else text.to(device)
        denoise = self.diffusion.denoiser(guided(self.network, text, scale))
        z = SAMPLERS["dpm++"](denoise, noise, self.diffusion.grid(steps, device), None)
        return F.normalize(z * self.std + self.mean, dim=1)


def train_latent(
    data: str | Path, config: Config, out: str | Path, validation: str | Path | None = None, show_progress: bool = True
) -> LatentModel:
    """Learn the distribution of latents, with and without a text (E15).

    Args:
        data: `latents.safetensors` of `minirodin encode`.
        config: `config.latent`.
        out: folder for `model.safetensors`, `log.csv`, `loss.png`.
        validation: another such file, of the same encoder, whose loss is logged.

    Returns:
        The model with averaged weights.

    Raises:
        DataError, CheckpointError, ConfigError: one line that names what does not fit.
    """
    c, known = config.latent, Latents.load(data)
    if c.diffusion.vlb_weight:
        raise ConfigError(f"latent.diffusion.vlb_weight is {c.diffusion.vlb_weight}: one number is predicted, give 0")
    unseen = Latents.load(validation) if validation else None
    if unseen and unseen.fingerprint != known.fingerprint:
        raise CheckpointError(f"{validation} was made by another encoder than {data}: encode both with one")
    if not known.texts.shape[1]:
        raise DataError(f"{data} has no texts: encode people that `minirodin avatars` made, whose attributes are known")
    latents, texts = known.latents.float(), known.texts.float()  # (S, K, Z), (S, P, Z)
    mean, std = latents.mean((0, 1)), latents.std((0, 1)).clamp_min(1e-4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(c.train.seed)
        network = LatentNetwork(c, latents.shape[-1])
    model = LatentModel(network, config, mean, std, known.fingerprint)
    metadata = {
        "kind": KIND,
        "config": json.dumps(config.to_dict()),
        "encoder": known.fingerprint,
        "subjects": f"{len(known.names)}: {known.names[0]} … {known.names[-1]}",
    }

    def losses(network, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict:
        z, text = batch
        keep = torch.rand(len(z), generator=generator, device=z.device) >= c.drop_text
        return model.diffusion.losses(network, (z - model.mean) / model.std, generator, text, keep)

    def batches(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def draw(below: int) -> Tensor:
            return torch.randint(below, (number,), generator=generator, device=latents.device)

        of = draw(len(latents))
        return latents[of, draw(latents.shape[1])], texts[of, draw(texts.shape[1])]

    def preview(_: int) -> dict[str, float]:
        generator = torch.Generator(model.mean.device).manual_seed(0)
        z, text = (v[:, 0].float().to(model.mean.device) for v in (unseen.latents, unseen.texts))
        errors = [losses(network, (z, text), generator)["eps"].mean() for _ in range(8)]
        return {"validation": float(torch.stack(errors).mean())}

    trainer = Trainer(
        network, losses, batches, c.train, out, metadata, {"mean": mean, "std": std}, preview if unseen else None
    )
    model.to(trainer.device)
    latents, texts = latents.to(trainer.device), texts.to(trainer.device)
    trainer.run(show_progress)
    network.requires_grad_(False)
    return model
