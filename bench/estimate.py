"""How long a bundle would take on a device that is not at hand, estimated from published measurements, with the error.

python -m bench estimate kdc_edge/data/emoji-64 --device iphone-14 galaxy-s25 raspberry-pi-5
python -m bench estimate                                  # the devices, and how far the estimates are off
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from bench.record import NOT_MEASURED
from bench.roofline import UNKNOWN, Estimate, Model, shipped
from bench.side import counters
from kdc_edge.bundle import Bundle
from kdc_edge.errors import UsageError, choose
from kdc_edge.files import write_json
from kdc_edge.markdown import table


@dataclass(frozen=True)
class EstimateConfig:
    """What for, and where."""

    bundles: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Bundle folders."""
    device: tuple[str, ...] = ()
    """Devices of bench/published.json, apart by spaces or commas; all of them if not given."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """JSON file for estimates, coefficients and every left-out row."""


def estimate(config: EstimateConfig) -> dict[str, Any]:
    """Estimated latencies, and the error of each published row when its chip is left out."""
    model = shipped()
    names = split(config.device) or list(model.data.devices)
    for name in names:
        choose(name, model.data.devices, "device")
    bundles = [Bundle.open(path) for path in config.bundles]
    if config.device and not bundles:
        raise UsageError("no bundle to estimate for; give one or more bundle folders, or leave --device out")
    found = [(bundle, name, _one(model, bundle, name)) for bundle in bundles for name in names]
    rows = [_row(model, bundle, name, each) for bundle, name, each in found]
    print(*(table(HEAD, rows) if rows else _devices(model)), "", *errors(model), sep="\n", file=sys.stderr)
    data = {
        "estimates": [
            {"bundle": bundle.id, "device": name, **(asdict(each) if each else {"state": NOT_MEASURED})}
            for bundle, name, each in found
        ],
        "coefficients": {name: list(values) for name, values in model.coefficients.items()},
        "median_error": model.error(),
        "left_out": [
            {**asdict(left.row), "estimated_s": left.seconds, "error": left.error}
            for rows in model.left_out.values()
            for left in rows
        ],
    }
    if config.output is not None:
        write_json(config.output, data)
    return data


HEAD = ("bundle", "device", "engine", "a picture", "text encoder", "U-Net call", "decoder", "state", "error")


def split(devices: Sequence[str]) -> list[str]:
    """Names apart by spaces or commas, each once."""
    return list(dict.fromkeys(name for given in devices for name in given.split(",") if name))


def state(found: Estimate) -> str:
    """How it was come by, in the words that every table uses."""
    if found.method == "roofline":
        return f"{found.state}: bare roofline, at least this long"
    basis = f"fit to {found.rows} rows" if found.rows else "fit to one chip"
    return f"{found.state}: {basis}{', far below all published calls' if found.beyond else ''}"


def error(found: Estimate) -> str:
    return UNKNOWN if isinstance(found.error, str) or found.beyond else f"± {found.error:.0%}"


def ms(seconds: float) -> str:
    """Two digits: more would be a promise."""
    return f"{seconds * 1e3:,.2g} ms" if seconds < 0.0995 else f"{seconds * 1e3:,.0f} ms"


def _one(model: Model, bundle: Bundle, device: str) -> Estimate | None:
    spec = bundle.manifest.pipeline
    return model.estimate(device, counters(bundle), spec.steps, spec.guidance)


def _row(model: Model, bundle: Bundle, device: str, found: Estimate | None) -> tuple[str, ...]:
    about, label = model.data.devices[device], f"{bundle.manifest.name} {bundle.manifest.precision}"
    engine = model.data.families[about.family].engine
    if found is None:
        return (label, about.name, engine, *[NOT_MEASURED] * 4, "its MACs were not counted", UNKNOWN)
    calls = [ms(found.calls_s[name]) for name in ("text_encoder", "unet", "vae_decoder")]
    return (label, about.name, engine, ms(found.picture_s), *calls, state(found), error(found))


def _devices(model: Model) -> list[str]:
    data = model.data
    counted = {name: sum(row.device == name for row in data.rows) for name in data.devices}
    rows = [
        (name, about.name, about.chip, data.families[about.family].engine, str(counted[name] or "none: bare roofline"))
        for name, about in data.devices.items()
    ]
    return table(("--device", "device", "chip", "engine", "published rows"), rows)


def errors(model: Model) -> list[str]:
    """By family and in all: how far an estimate is from a row whose chip was left out."""
    rows: list[tuple[str, ...]] = []
    for name, left in model.left_out.items():
        if not left:
            rows.append((name, str(len(model.data.rows_of(name))), "1", UNKNOWN, UNKNOWN, "no other chip to fit to"))
            continue
        away = [abs(each.error) for each in left]
        worst = left[int(np.argmax(away))]
        chips = str(len({model.data.chip(each.row) for each in left}))
        far = f"{worst.error:+.0%}: {model.data.devices[worst.row.device].name}, {worst.row.what.replace('_', ' ')}"
        rows.append((name, str(len(left)), chips, f"{np.median(away):.0%}", f"{np.quantile(away, 0.9):.0%}", far))
    away = [abs(each.error) for left in model.left_out.values() for each in left]
    rows.append(("all", str(len(away)), "", f"{np.median(away):.0%}", f"{np.quantile(away, 0.9):.0%}", ""))
    return table(("family", "rows", "chips", "median error, chip left out", "nine in ten below", "worst"), rows)
