"""The sections of a `Config`: what each part of the method can be told, with the values of `small`.

A number that says nothing of where it comes from is our own choice. `config.py` has the values of `full`, each with its
source.
"""

import dataclasses
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataConfig:
    """The multi-view images of the synthetic people."""

    subjects: int = 512  # RodinHD: 46 000
    views: int = 32  # RodinHD: 300
    size: int = 256  # pixels; RodinHD: 1024


@dataclass(frozen=True)
class TriplaneConfig:
    """E1: three planes of `channels` × `resolution`², also used at `base_resolution`² by the base diffusion model."""

    resolution: int = 256
    base_resolution: int = 64
    channels: int = 16  # the paper: 32


@dataclass(frozen=True)
class DecoderConfig:
    """E2: the shared MLP."""

    hidden: int = 64
    feature_frequencies: int = 2  # octaves of ξ on the queried features
    direction_frequencies: int = 2
    density_scale: float = 50.0  # an opaque surface needs σ of a few hundred: the box is 2 wide, a texel 2/256


@dataclass(frozen=True)
class RenderConfig:
    """E3: occupancy-guided quadrature."""

    grid: int = 64  # occupancy cells an axis
    bins: int = 128  # occupancy look-ups a ray
    samples: int = 32  # decoded samples a ray while fitting
    view_samples: int = 64  # decoded samples a ray for pictures


@dataclass(frozen=True)
class FitConfig:
    """E3–E5: the optimisation. Stage one learns the shared decoder, stage two fits planes to it."""

    shared_steps: int = 5000  # stage one, all groups together
    steps: int = 2000  # stage two, each group
    group: int = 64  # subjects fitted side by side
    rays: int = 4096  # per subject and step
    coarse_lr: float = 2e-2
    detail_lr: float = 5e-3
    decoder_lr: float = 2e-3
    coarse_fraction: float = 0.15  # of the steps at base resolution only
    grid_every: int = 100  # steps between refreshes of the occupancy grid
    resolutions: tuple[int, ...] = (256, 128, 64)  # E5c: random rescaling …
    resolution_weights: tuple[float, ...] = (0.35, 0.15, 0.5)  # … and how often each is drawn
    start_noise: float = 0.0  # standard deviation of the first planes; what no ray meets keeps it
    plane_noise: float = 0.02  # E5b: standard deviation added to the planes while fitting
    value_range: float = 1.0  # planes are clamped to ±this wherever they are used (RodinHD: ±1)
    total_variation: float = 0.5  # E4 smoothness; what diffusability is bought with (results/fitting_study.json)
    magnitude: float = 1e-4  # E4 sparsity of the features
    sparsity: float = 1e-3  # E4 sparsity of the density at random points of the box
    free_space: float = 1e-1  # the same where the alpha masks show that nothing is
    distortion: float = 1e-3  # E4 compactness
    checkpoint_every: int = 3000
    seed: int = 0


@dataclass(frozen=True)
class UNetConfig:
    """E10–E12: the network. `full` is the shape of the closest published code (PITI, by the same first author)."""

    variant: str = "aware"  # baseline | rollout | aware
    channels: tuple[int, ...] = (64, 128, 192, 256)  # at R, R/2, R/4, R/8
    blocks: int = 2  # residual blocks a level
    attention: tuple[int, ...] = (16, 8)  # resolutions
    head_width: int = 64
    aware_levels: int = 2  # 3D-aware at this many of the highest resolutions; attention does the rest
    dropout: float = 0.0
    latent: int = 0  # width of the latent z that conditions it (E13); 0: none
    checkpointing: bool = False  # compute activations again in the backward pass: less memory, a third more time
    drop_latent: float = 0.2  # E14: how often z is withheld in training


@dataclass(frozen=True)
class DiffusionConfig:
    """E6–E8. λ is the log-SNR; t runs from 0 (data) to 1 (noise), continuously."""

    schedule: str = "linear"  # λ linear in t (E6) | cosine: tan(πt/2) = exp(−λ/2)
    log_snr_max: float = 6.0  # the paper does not say; less noise than this on the planes cannot be seen (notebook 02)
    log_snr_min: float = -10.0
    log_snr_stop: float = 99.0  # where sampling ends, with the mean of what could follow; at log_snr_max at the latest
    shift: float = 0.0  # where the cosine's middle is; negative: more of training at much noise
    prediction: str = "v"  # eps (E7) | x0 | v; at much noise the smallest error in ε̂ is a huge one in ŷ_0
    vlb_weight: float = 1e-3  # E8, of the bound with `steps` steps (Improved DDPM)
    steps: int = 1000


@dataclass(frozen=True)
class TrainConfig:
    """One training loop for every network of the project."""

    steps: int = 20_000
    batch: int = 64  # over all processes
    accumulate: int = 1  # parts that a batch is split into
    lr: float = 2e-4
    warmup: int = 500  # steps
    decay: bool = True  # cosine to a twentieth; else constant
    weight_decay: float = 0.0
    clip: float = 1.0  # of the gradient's norm
    ema: float = 0.999
    graph: bool = True  # on a GPU, replay the network's kernels as CUDA graphs instead of launching them one by one
    log_every: int = 50
    preview_every: int = 2500
    checkpoint_every: int = 2500
    seed: int = 0
    cache: float = 8.0  # GiB that planes (of base, upsampler) may take on the device; more are streamed from shards


@dataclass(frozen=True)
class BaseConfig:
    """The base diffusion model on planes of `TriplaneConfig.base_resolution`."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    plain_channels: tuple[int, ...] = (64, 144, 208, 256)  # baseline and rollout: as many parameters as `aware`
    diffusion: DiffusionConfig = field(  # planes repeat themselves: at λ = −8 noisy ones still show whose they are
        default_factory=lambda: DiffusionConfig(schedule="cosine", shift=-1.0, log_snr_min=-14.0)
    )
    visible: bool = True  # measure channels by what they do to pictures (`plane_space`); else all alike
    focus: float = 0.0  # power of what a texel does to pictures, by which its error is weighed; 0: all alike (E7)
    perceptual_weight: float = 0.0  # of E19 on ŷ_0, where the upsampler's settings say; 0: planes count alone …
    likeness_weight: float = 0.0  # … and of 1 − cos(z, the encoder's z of a frontal render); 0: not looked at
    rendered: int = 4  # people of each part of a batch of whom these are asked
    elsewhere: float = 0.15  # for E19 here, as `UpsamplerConfig.elsewhere`
    train: TrainConfig = field(default_factory=lambda: TrainConfig(lr=1e-3, warmup=200))  # 2e-3 is worse

    def of_variant(self, variant: str) -> "BaseConfig":
        """The same model as `baseline`, `rollout` or `aware`, of equal size."""
        channels = self.unet.channels if variant == self.unet.variant else self.plain_channels
        return dataclasses.replace(self, unet=dataclasses.replace(self.unet, variant=variant, channels=channels))


@dataclass(frozen=True)
class AugmentConfig:
    """E18: the largest magnitudes by which the upsampler's condition is spoiled in training, drawn evenly.

    `minirodin tune` finds them: so that renders of spoiled planes are as far from good ones as the base model's are.
    """

    smallest: float = 0.5  # side that planes are reduced to and enlarged again, of their own
    blur: float = 1.0  # texels, standard deviation
    noise: float = 0.3  # standard deviation, in the space of the base model


@dataclass(frozen=True)
class UpsamplerConfig:
    """E17–E19: the diffusion model from planes at `TriplaneConfig.base_resolution` to `TriplaneConfig.resolution`."""

    unet: UNetConfig = field(
        default_factory=lambda: UNetConfig(channels=(48, 64, 96, 128), blocks=1, attention=(), aware_levels=4)
    )
    diffusion: DiffusionConfig = field(
        # Sixteen texels average where there was one: about log 16 lower than the base model's, and learned lower still,
        # since sampling ends at λ = −4: what was decided at clearer levels was wrong detail (results/runs.md).
        default_factory=lambda: DiffusionConfig("cosine", 6.0, -14.0, -4.0, -8.0, prediction="x0", vlb_weight=0.0)
    )
    steps: int = 10  # calls of the network when it samples, unless it is told otherwise
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    view: int = 256  # pixels a side of the pictures that E19 compares
    patch: int = 112  # pixels a side of the part of them that is rendered
    rendered: int = 4  # people of each part of a batch whose patches are rendered
    perceptual_weight: float = 0.5  # of E19 beside the plane loss
    perceptual: str = ""  # network of E19: lpips-vgg | efficientnet-lite0; by default the best that is here
    face: tuple[float, ...] = (0.0, 0.02, 0.45)  # where patches fall most often, in the box: between eyes and mouth …
    face_radius: float = 0.3  # … and how far around; foreign data: (0, 0, 0) and 1
    elsewhere: float = 0.15  # how often they fall anywhere at all, in parts of the face's peak
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=10_000, batch=16, lr=7e-4))


@dataclass(frozen=True)
class RefinerConfig:
    """E20: the convolutional network from a rendered view to one of twice and of four times its side."""

    channels: tuple[int, ...] = (64, 32, 16)  # at 1, 2 and 4 times the side of the view
    blocks: tuple[int, ...] = (12, 2, 1)  # residual blocks there
    view: int = 256  # pixels a side of the views; photographs to learn from have four times as many
    patch: int = 64  # pixels a side of the part of a view that is learned from at a time
    resolutions: tuple[int, ...] = (256, 128, 64)  # sizes that planes are rendered at: softer ones, as generated
    blur: float = 0.7  # pixels, largest standard deviation of the blur that a view gets in training …
    noise: float = 0.02  # … and of the noise
    perceptual: str = ""  # as of the upsampler
    perceptual_weight: float = 0.01  # beside the L1 loss
    adversarial_weight: float = 0.0  # of an adversary (adversary.py); 0: none
    pairs: int = 4  # pairs of neighbouring views in each part of a batch, that shall agree …
    turn: float = 6.0  # … degrees apart …
    consistency_weight: float = 0.2  # … and how much that counts
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=10_000, batch=16, lr=5e-4))


@dataclass(frozen=True)
class ClassifierConfig:
    """The attribute classifier, which judges pictures independently of everything that made them."""

    size: int = 144  # pixels a side that the network sees
    channels: tuple[int, ...] = (32, 64, 128, 256)  # at 1/2, 1/4, 1/8, 1/16 of the size; multiples of 8
    label_smoothing: float = 0.05  # a little of every label is wrong: an earring can be behind the head
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            **{"steps": 4000, "batch": 256, "lr": 1e-3, "warmup": 300, "weight_decay": 0.05, "ema": 0.998},
            **{"log_every": 100, "preview_every": 1000, "checkpoint_every": 2000},
        )
    )


@dataclass(frozen=True)
class EncoderConfig:
    """E13: the project's own image–text encoder, an open_clip model small enough to be shipped."""

    dimensions: int = 512  # of the space
    size: int = 144  # pixels a side that the image tower sees
    tower: str = "residual"  # what sees: a network of the classifier's shape, or, where empty, a ViT
    channels: tuple[int, ...] = (48, 96, 192, 384)  # of the residual tower, at 1/2 … 1/16 of the size; multiples of 8
    patch: int = 12
    width: int = 256
    layers: int = 6
    text_width: int = 192
    text_layers: int = 6
    context: int = 48  # tokens of a text; the longest caption has 45
    head_width: int = 64
    captions: int = 8  # paraphrases of each person …
    partial_captions: int = 8  # … and texts that tell one to three things
    unknown: float = 0.05  # how often a word is made unknown in training, so that strange ones do little harm
    prompt_weight: float = 10.0  # of the attribute prompts against the captions …
    attribute_weight: float = 0.0  # … and of linear heads that read attributes off the embedding; 0: no heads
    stay_weight: float = 0.0  # of one begun from another: 1 − cos of a picture's embeddings by both
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            **{"steps": 6000, "batch": 256, "lr": 1e-3, "warmup": 500, "weight_decay": 0.05, "graph": False},
            **{"log_every": 100, "preview_every": 1000, "checkpoint_every": 2000},
        )
    )


@dataclass(frozen=True)
class LatentConfig:
    """E15: the diffusion model over latents."""

    width: int = 384
    blocks: int = 4
    drop_text: float = 0.2  # E14: how often the text is withheld in training
    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(vlb_weight=0.0))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch=512, lr=1e-3))
