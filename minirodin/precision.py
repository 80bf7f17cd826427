"""In which numbers networks compute when nothing is learned: in bfloat16, where a machine multiplies it fast."""

from functools import cache

import torch

from minirodin.errors import ConfigError

DTYPES = (torch.float32, torch.bfloat16)


@cache
def fast_dtype(kind: str) -> torch.dtype:
    """bfloat16 on GPUs and on CPUs with matrix tiles (AMX), else float32; `kind` is a device's type.

    A step of the base model in the box took half as long with tiles as in float32, and a third longer where oneDNN was
    kept to the instructions for bfloat16 that some CPUs have without tiles (AVX-512 BF16).
    """
    if kind == "cpu":
        tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # torch has no public name for it
        return torch.bfloat16 if torch.backends.mkldnn.is_available() and tiles() else torch.float32
    return torch.bfloat16 if kind == "cuda" else torch.float32


def inference(device: torch.device, dtype: torch.dtype | None = None) -> torch.autocast:
    """Autocast for a network with float32 weights; `dtype` None: whatever is fast on the device."""
    dtype = dtype or fast_dtype(device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def checked(dtype: torch.dtype | None) -> torch.dtype | None:
    """The type itself; raises `ConfigError` for one that networks do not compute in."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype}: choose torch.float32 or torch.bfloat16, or None for what is fast here")
    return dtype
