"""The command that says what a reproduction would take."""

from pathlib import Path


def plan(
    preset: str = "small",
    gpus: int = 1,
    gpu_memory: float = 80.0,
    host_memory: float = 128.0,
    results: Path | None = None,
    out: Path | None = None,
) -> None:
    """Say what `minirodin reproduce` would take on so many GPUs: disk, memory and time, from rates that were measured.

    Args:
        preset: smoke, small or full.
        gpus: as many processes share every stage but that of the shared decoder.
        gpu_memory: GiB of one GPU.
        host_memory: GiB of the machine's memory that one process may take.
        results: folder of measured rates; by default `results` of the checkout, or of the folder that is worked in.
        out: JSON file for the numbers; the table is always printed.
    """
    from minirodin.evaluation import write_json
    from minirodin.plan import as_json, make_plan

    stages = make_plan(preset, gpus, gpu_memory, host_memory, results)
    found = as_json(stages)
    if out:
        given = {"preset": preset, "gpus": gpus, "gpu_memory": gpu_memory, "host_memory": host_memory}
        write_json({**given, **found}, out)
    print(table(stages, found))


def table(stages: list, found: dict) -> str:
    """Stages as rows, then what is behind each number, what is missing, and what would not fit."""
    heads = ["stage", "disk GiB", "host GiB", "GPU GiB", "GPU hours", "hours", "what"]
    rows = [heads]
    for s in stages:
        gpu = None if s.gpu is None else f"{'≥ ' if s.at_least else ''}{_number(s.gpu)}"
        times = (_number(s.gpu_hours), _number(s.hours))
        rows.append([s.name, _number(s.disk), _number(s.host), gpu or "?", *times, s.what])
    sums = [_number(found[key]) for key in ("disk", "gpu_hours", "hours")]
    missing = f"without {', '.join(found['missing'])}" if found["missing"] else ""
    rows.append(["all", sums[0], "", "", sums[1], sums[2], missing])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    sides = [str.ljust, *[str.rjust] * 5, str.ljust]
    lines = ["  ".join(side(w, n) for side, w, n in zip(sides, row, widths, strict=True)).rstrip() for row in rows]
    for s in stages:
        lines += ["", f"{s.name}: {'; '.join([*s.notes, 'from ' + ', '.join(s.sources)] if s.sources else s.notes)}"]
        lines += [f"  DOES NOT FIT: {what}" for what in s.too_much]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "missing"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
