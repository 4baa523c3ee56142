"""The libraries' notes on loading and their progress bars are not this program's output."""

import contextlib
import importlib
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """`diffusers`, `transformers`: silent inside the block, as they were after it."""
    logs = [importlib.import_module(f"{library}.utils.logging") for library in libraries]
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bar in before:
            log.set_verbosity(verbosity)
            if bar:
                log.enable_progress_bar()
