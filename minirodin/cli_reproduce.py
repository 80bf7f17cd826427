"""The command that does everything."""

from pathlib import Path
from typing import Annotated

import tyro

from minirodin.config import Config
from minirodin.config import preset as load_preset
from minirodin.errors import ConfigError
from minirodin.recipes import Plan


def reproduce(out: Path, config: Annotated[Config, tyro.conf.arg(name="")], plan: Plan, preset: str = "small") -> None:
    """Everything: make people, fit them, train every network, measure, and write a report; the same command resumes.

    Also under accelerate launch and torchrun.

    Args:
        out: folder of the models, which `minirodin generate --pipeline` takes, of results/ and of report.html.
        config: any setting of the preset.
        plan: how much of everything is made and measured.
        preset: smoke, small or full: the settings below start from it.
    """
    untouched = load_preset(preset)
    for flag, changed in {
        "--data": config.data != untouched.data,
        "--fit.group": config.fit.group != untouched.fit.group,
    }.items():
        if changed:
            raise ConfigError(
                f"{flag} means nothing to `reproduce`: give --plan.base, --plan.upsampler, --plan.refiner"
            )
    from minirodin.reproduce import reproduce as run

    print(run(config, plan, out))
