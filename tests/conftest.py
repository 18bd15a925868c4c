"""What the rooms above the models share: tiny base models on disk."""

import gc
import logging
import signal

import pytest

from tiny_base import save_bert, save_llama

# Programs that a script starts in the background ignore Ctrl-C, and tests of it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _library_says_nothing_by_itself():
    """Commands make the library's log visible for the rest of their process, which here are other tests."""
    yield
    logger = logging.getLogger("qpeft")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def llama_base(tmp_path_factory):
    """Folder of a tiny causal language model with a chat template; not to be written to."""
    gc.freeze()  # the trainers collect garbage, which takes longer than a tiny run where so much is imported
    return save_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(scope="session")
def bert_base(tmp_path_factory):
    """Folder of a tiny encoder; not to be written to."""
    return save_bert(tmp_path_factory.mktemp("base") / "tiny-bert")
