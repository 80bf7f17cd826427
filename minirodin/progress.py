"""One plain-text progress bar for terminals and notebooks alike: no widgets, which GitHub refuses to render."""

import os

from tqdm.std import tqdm


def progress(iterable=None, *, total: int | None = None, desc: str = "", unit: str = "it", enabled: bool = True):
    """Wrap `iterable` (or count to `total` by `.update()`) in a text bar; `.set_postfix(loss=...)` adds numbers.

    Nothing is printed when `enabled` is False or the environment has MINIRODIN_PROGRESS=0 (tests, benchmarks).
    """
    shown = enabled and os.environ.get("MINIRODIN_PROGRESS", "1") != "0"
    return tqdm(iterable, total=total, desc=desc, unit=unit, disable=not shown, ncols=100, ascii=" =", mininterval=0.5)
