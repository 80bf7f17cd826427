"""How large the numbers in a file's settings may be.

A network is built before its weights are compared with the file's: a stranger might ask for one that no machine holds.
"""

import dataclasses
import math

from minirodin.config import Config
from minirodin.errors import ConfigError

SIDE, WIDTH, COUNT = (1, 8192), (1, 8192), (0, 256)  # least and most, several times what `full` has
LIMITS = {
    **dict.fromkeys(("resolution", "base_resolution", "resolutions", "size", "view", "patch", "context"), SIDE),
    **dict.fromkeys(("channels", "plain_channels", "hidden", "width", "text_width", "head_width", "dimensions"), WIDTH),
    **dict.fromkeys(("blocks", "layers", "text_layers", "aware_levels"), COUNT),
    **{"grid": (1, 512), "bins": (1, 4096), "samples": (1, 4096), "view_samples": (1, 4096), "latent": (0, 8192)},
    **{"feature_frequencies": (0, 32), "direction_frequencies": (0, 32), "dropout": (0, 1), "steps": (1, 10**9)},
}
WEIGHTS = 2**25  # blocks · widths², less than a network's weights; in `full` 4 · 2^20


def checked(config: Config, size: int = 0) -> Config:
    """The config itself, of a file of `size` bytes, which may hold a network of as many weights.

    Raises:
        ConfigError: a number is none, or is beyond all measure.
    """
    _check(config, "")
    c = config
    stacks = {
        "base.unet": (c.base.unet.blocks, c.base.unet.channels),
        "upsampler.unet": (c.upsampler.unet.blocks, c.upsampler.unet.channels),
        "refiner": (max(c.refiner.blocks, default=0), c.refiner.channels),
        "classifier": (1, c.classifier.channels),
        "encoder": (1, c.encoder.channels),
        "encoder.layers": (c.encoder.layers, (c.encoder.width,)),
        "encoder.text_layers": (c.encoder.text_layers, (c.encoder.text_width,)),
        "latent": (c.latent.blocks, (c.latent.width,)),
        "decoder": (1, (c.decoder.hidden, c.triplane.channels * (1 + 2 * c.decoder.feature_frequencies))),
    }
    for name, (blocks, widths) in stacks.items():
        if (blocks + 1) * sum(width * width for width in widths) > max(WEIGHTS, size):
            raise ConfigError(f"{name} is a network of {blocks} × {widths}: larger than any that is known")
    return config


def _check(section, prefix: str) -> None:
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            _check(value, f"{name}.")
            continue
        low, high = LIMITS.get(field.name, (-math.inf, math.inf))
        values = value if isinstance(value, tuple) else (value,)
        if len(values) > 16:
            raise ConfigError(f"{name} has {len(values)} entries: at most 16")
        wanted = next(kind for kind in (str, bool, float, int) if kind.__name__ in str(field.type))
        for entry in values:
            if not isinstance(entry, (int, float) if wanted is float else wanted):
                raise ConfigError(f"{name} holds {str(entry)[:40]!r}, which is no {wanted.__name__}")
            if wanted is not str and not (low <= entry <= high and abs(entry) < 1e30):
                raise ConfigError(f"{name} is {str(entry)[:40]}: expected a number from {low:g} to {high:g}")
