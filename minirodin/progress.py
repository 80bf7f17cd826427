"""One plain-text progress bar for terminals, logs and notebooks: no widgets, which GitHub refuses to render."""

import functools
import os
import sys

from tqdm.std import tqdm


def progress(iterable=None, *, total: int | None = None, desc: str = "", unit: str = "it", enabled: bool = True):
    """Wrap `iterable` (or count to `total` by `.update()`) in a text bar; `.set_postfix(loss=...)` adds numbers.

    Nothing is printed when `enabled` is False or the environment has MINIRODIN_PROGRESS=0 (tests, benchmarks). Where
    lines cannot be overwritten (a log, a notebook's file) it is drawn every ten seconds only.
    """
    shown = enabled and os.environ.get("MINIRODIN_PROGRESS", "1") != "0"
    interval = 0.2 if sys.stderr.isatty() else 10.0
    bar = tqdm(
        iterable, total=total, desc=desc, unit=unit, disable=not shown, ncols=100, ascii=" =", mininterval=interval
    )
    bar.set_postfix = functools.partial(bar.set_postfix, refresh=False)
    return bar
