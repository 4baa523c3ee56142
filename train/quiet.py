"""The libraries' own progress bars and advice are not this program's output."""

import os


def quiet() -> None:
    """Import diffusers and transformers without a word; to be called before anything else imports them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
