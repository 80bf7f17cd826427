"""minirodin: a readable, runnable reproduction of Rodin, diffusion on tri-planes for 3D avatars (CVPR 2023)."""

import importlib

__version__ = "0.1.0"

# Heavy modules load on first use, so that `import minirodin` and `minirodin --help` stay quick.
_EXPORTS = {
    "Avatar": "avatar",
    "RodinPipeline": "pipeline",
    "Cameras": "cameras",
    "Capture": "cameras",
    "load_capture": "cameras",
    "TriplaneDecoder": "decoder",
    "fit_subjects": "fitting",
    "preset": "config",
    "MinirodinError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "CheckpointError": "errors",
    "RenderError": "errors",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"minirodin.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'minirodin' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
