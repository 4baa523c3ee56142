"""What the numbers of settings may be; no torch."""

import math
from dataclasses import fields, is_dataclass
from typing import Any

from kdc_edge.errors import UsageError

NOT_NEGATIVE = ("warmup", "sample_every", "weight_decay", "clip", "features", "latent_noise", "blur", "noise", "blocks",
                "task", "out", "feat", "soft", "soft_normalised")  # fmt: skip
POSITIVE = ("steps", "batch_size", "learning_rate", "accumulate", "parts", "steps_drawn", "channels", "captions", "size",
            "merges", "neighbours")  # fmt: skip


def check_number(name: str, value: float) -> None:
    """UsageError for a setting that is not finite or out of its range."""
    limits = [
        (math.isfinite(value), "finite"),
        (name not in POSITIVE or value > 0, "above 0"),
        (name not in NOT_NEGATIVE or value >= 0, "0 or more"),
        (name != "toned_share" or 0 <= value <= 1, "between 0 and 1"),
        (name != "ema" or 0 <= value < 1, "0 or more and below 1"),
    ]
    for kept, wanted in limits:
        if not kept:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be {wanted}")


def check_numbers(config: Any) -> None:
    """`check_number` for every number of these settings and of those inside them."""
    for name, value in ((each.name, getattr(config, each.name)) for each in fields(config)):
        if is_dataclass(value):
            check_numbers(value)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float):
                check_number(name, number)
