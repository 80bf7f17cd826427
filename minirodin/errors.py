"""What a user's mistake raises: one clear line that says what was given, what was wanted and what to do."""


class MinirodinError(ValueError):
    """Base of every error that is the input's fault; the command line prints its one line and exits with 2."""


class ConfigError(MinirodinError):
    """An unknown preset, or settings that contradict each other."""


class DataError(MinirodinError):
    """A capture, image or camera file that cannot be used."""


class CheckpointError(MinirodinError):
    """An avatar, decoder or shard file that is truncated, tampered with or of another shape."""


class RenderError(MinirodinError):
    """OpenGL is not available, or a view that cannot be drawn."""
