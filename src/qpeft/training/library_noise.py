"""Keeping the libraries' own progress bars and advice out of ours; warnings that concern a run remain."""

from __future__ import annotations

import os
import warnings


def turn_off() -> None:
    """For the rest of this process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import transformers
    from datasets.utils.logging import disable_progress_bar

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl|torch)\b.*")
    warnings.filterwarnings("ignore", message="Unable to fetch remote file")
    warnings.filterwarnings("ignore", message="Could not find a config file in")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bar()
