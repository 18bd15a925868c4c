"""Small tokenizers with one token a byte, so that the right labels of a text can be written down by hand."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{{ '<head>' + message['role'] + '</head>\n\n' + message['content'] | trim + '<eot>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<head>assistant</head>\n\n' }}{% endif %}"
)
# No system role, and the turn ends before a fresh beginning, as Llama 2 and Mistral do.
INST = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<bos>[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' <eot>' }}"
    "{% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
)
NO_END = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"


def byte_tokenizer(template=None, merges=(), eos="<eot>", bos="<bos>"):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *(left + right for left, right in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|im_start|>", "<|im_end|>", "<head>", "</head>", "<eot>", "<bos>"]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos, pad_token=eos)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def make_tokenizer():
    return byte_tokenizer


@pytest.fixture
def templates():
    return {"chatml": CHATML, "llama": LLAMA, "inst": INST, "no_end": NO_END}
