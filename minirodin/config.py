"""Settings as frozen dataclasses and the three presets; one `Config` travels inside every checkpoint.

`smoke` runs every stage in seconds on two CPU cores, `small` gives real results on one GPU, `full` is the paper's size.
A preset is data: no code asks which one it is.
"""

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field

from minirodin.errors import ConfigError
from minirodin.sections import (
    AugmentConfig,
    BaseConfig,
    ClassifierConfig,
    DataConfig,
    DecoderConfig,
    DiffusionConfig,
    EncoderConfig,
    FitConfig,
    LatentConfig,
    RefinerConfig,
    RenderConfig,
    TrainConfig,
    TriplaneConfig,
    UNetConfig,
    UpsamplerConfig,
)

__all__ = [
    "PRESETS",
    "AugmentConfig",
    "BaseConfig",
    "ClassifierConfig",
    "Config",
    "DataConfig",
    "DecoderConfig",
    "DiffusionConfig",
    "EncoderConfig",
    "FitConfig",
    "LatentConfig",
    "RefinerConfig",
    "RenderConfig",
    "TrainConfig",
    "TriplaneConfig",
    "UNetConfig",
    "UpsamplerConfig",
    "preset",
]


@dataclass(frozen=True)
class Config:
    """Everything a run needs, saved with what it makes."""

    name: str = "small"
    data: DataConfig = field(default_factory=DataConfig)
    triplane: TriplaneConfig = field(default_factory=TriplaneConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    render: RenderConfig = field(default_factory=RenderConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    upsampler: UpsamplerConfig = field(default_factory=UpsamplerConfig)
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """Rebuild a config; unknown keys and wrong types raise `ConfigError`.

        What did not exist when the file was written takes its default, which is what was done before.
        """
        return _build(cls, values, "config")


PRESETS = {
    "smoke": Config(
        name="smoke",
        data=DataConfig(subjects=4, views=12, size=64),
        triplane=TriplaneConfig(resolution=64, base_resolution=32, channels=8),
        decoder=DecoderConfig(hidden=32),
        render=RenderConfig(grid=32, bins=64, samples=12, view_samples=32),
        fit=FitConfig(
            **{"shared_steps": 240, "steps": 120, "group": 4, "rays": 512, "grid_every": 20},
            **{"resolutions": (64, 32), "resolution_weights": (0.6, 0.4), "checkpoint_every": 50},
        ),
        base=BaseConfig(
            unet=UNetConfig(channels=(24, 48), blocks=1, attention=(16,), head_width=24, aware_levels=1),
            plain_channels=(26, 48),
            train=TrainConfig(
                **{"steps": 60, "batch": 8, "lr": 1e-3, "warmup": 10, "ema": 0.9},
                **{"log_every": 10, "preview_every": 30, "checkpoint_every": 20},
            ),
        ),
        upsampler=UpsamplerConfig(
            unet=UNetConfig(channels=(16, 32), blocks=1, attention=(), aware_levels=2),
            **{"view": 64, "patch": 32, "rendered": 1},
            train=TrainConfig(
                **{"steps": 40, "batch": 2, "lr": 2e-3, "warmup": 10, "ema": 0.9},
                **{"log_every": 10, "preview_every": 40, "checkpoint_every": 20},
            ),
        ),
        refiner=RefinerConfig(
            **{"channels": (24, 12, 8), "blocks": (3, 1, 1), "view": 64, "patch": 24, "resolutions": (64, 32)},
            train=TrainConfig(steps=60, batch=4, lr=2e-3, warmup=10, ema=0.9, log_every=10, checkpoint_every=20),
        ),
        encoder=EncoderConfig(
            **{"tower": "", "prompt_weight": 1.0, "attribute_weight": 1.0, "captions": 16},
            **{"size": 64, "patch": 16, "width": 96, "layers": 3, "text_width": 64, "text_layers": 2, "head_width": 32},
            train=TrainConfig(
                **{"steps": 200, "batch": 32, "lr": 1e-3, "warmup": 20, "ema": 0.95, "graph": False},
                **{"log_every": 20, "preview_every": 100, "checkpoint_every": 100},
            ),
        ),
        latent=LatentConfig(
            **{"width": 64, "blocks": 2},
            train=TrainConfig(
                **{"steps": 200, "batch": 64, "lr": 3e-3, "warmup": 20, "ema": 0.95},
                **{"log_every": 20, "preview_every": 100, "checkpoint_every": 100},
            ),
        ),
        classifier=ClassifierConfig(
            **{"size": 64, "channels": (16, 32, 64, 96)},
            train=TrainConfig(
                **{"steps": 200, "batch": 32, "lr": 3e-3, "warmup": 20, "ema": 0.95},
                **{"log_every": 20, "preview_every": 100, "checkpoint_every": 100},
            ),
        ),
    ),
    "small": Config(encoder=EncoderConfig(attribute_weight=10.0)),
    # Sources: "paper", what its method section says; where it says nothing RodinHD (arXiv 2407.06938) and PITI (Wang et
    # al. 2022), the nearest published work; else "not published, our choice". So are all values that are not named here
    # but latents withheld (E14), y_0 predicted (E17) and patches of 112² (E19), the paper's, and 1000 steps, PITI's.
    "full": Config(
        name="full",
        encoder=EncoderConfig(attribute_weight=10.0),  # not published (the paper: CLIP), our choice
        data=DataConfig(
            subjects=100_000,  # what is aimed at; RodinHD: 46 000
            views=300,  # RodinHD
            size=1024,  # RodinHD; the paper's output has as many pixels
        ),
        triplane=TriplaneConfig(channels=32),  # RodinHD, of the paper's planes; 256² and 64²: paper
        decoder=DecoderConfig(hidden=128),  # not published, our choice
        render=RenderConfig(
            **{"grid": 128, "bins": 256},  # not published, our choice
            **{"samples": 48, "view_samples": 128},  # not published, our choice: empty space takes none
        ),
        fit=FitConfig(
            shared_steps=60_000,  # not published, our choice: 1024 people in groups of 64 take turns, 3750 steps each
            steps=8000,  # not published, our choice; RodinHD's fits of the paper's planes: 15 000
            rays=8192,  # RodinHD's fits of the paper's planes
        ),
        base=BaseConfig(
            unet=UNetConfig(
                channels=(192, 384, 576, 768),  # PITI: 192 times 1, 2, 3, 4
                blocks=3,  # PITI
                attention=(32, 16, 8),  # PITI, as are heads of 64
                dropout=0.1,  # PITI
            ),
            plain_channels=(192, 448, 608, 768),  # our choice: as many parameters as above
            diffusion=DiffusionConfig(
                log_snr_min=-14.0,  # not published, our choice; λ linear in t: paper; v instead of the paper's ε: ours
            ),
            train=TrainConfig(
                **{"steps": 500_000, "batch": 256, "lr": 1e-4, "warmup": 5000},  # not published, our choice
                ema=0.9999,  # PITI
            ),
        ),
        upsampler=UpsamplerConfig(
            unet=UNetConfig(
                channels=(128, 128, 256, 512),  # RodinHD: 128 times 1, 2, 4; one more level at 256²: our choice
                blocks=2,  # not published, our choice
                attention=(),  # not published, our choice: 3D-aware convolutions let planes talk
                aware_levels=4,  # paper: in every residual block
                checkpointing=True,  # our choice: memory
            ),
            train=TrainConfig(
                **{"steps": 300_000, "batch": 64, "lr": 1e-4, "warmup": 5000},  # not published, our choice
                ema=0.9999,  # as of the base model: our choice
                graph=False,  # our choice
            ),
        ),
        refiner=RefinerConfig(
            channels=(128, 64, 32),  # not published (the paper cites GFPGAN), our choice
            blocks=(24, 4, 2),  # not published, our choice
            train=TrainConfig(steps=100_000, batch=64, ema=0.9999),  # not published, our choice
        ),
    ),
}


def preset(name: str) -> Config:
    """The preset of this name: `smoke`, `small` or `full`.

    Raises:
        ConfigError: for another name, with the nearest one.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(PRESETS)}"
        raise ConfigError(f"unknown preset {name!r}: {hint}")
    return PRESETS[name]


RETIRED = {"base.train.compile", "base.unet.positions", "upsampler.unet.positions", "encoder.stem_pool"}
RETIRED |= {"upsampler.likeness_weight"}  # of old files


def _build(kind, values, where: str):
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is {type(values).__name__}, expected an object with fields")
    hints = typing.get_type_hints(kind)
    values = {name: value for name, value in values.items() if f"{where}.{name}".removeprefix("config.") not in RETIRED}
    if unknown := sorted(set(values) - set(hints)):
        raise ConfigError(f"{where} has the unknown field {unknown[0]!r}: it was made by another version of minirodin")
    built = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = _build(hint, value, f"{where}.{name}")
        elif typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
            value = tuple(value)
        elif hint is float and isinstance(value, int):
            value = float(value)
        elif not isinstance(value, typing.get_origin(hint) or hint):
            raise ConfigError(f"{where}.{name} is {value!r}, expected {hint}")
        built[name] = value
    return kind(**built)
