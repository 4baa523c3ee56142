"""The libraries' notes on loading and their progress bars are not this program's output."""

import contextlib
import importlib
import io
import logging
import warnings
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


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No log, no warning and no progress bar inside the block: coremltools has some of each at import and in every pass."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        output = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
        with output[0], output[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
