"""Estimates agree with what real steps keep, compute and use."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from qpeft import QTHAConfig
from qpeft.errors import InputError
from qpeft.training import footprint
from qpeft.training.trace import trace

SHAPE = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 5,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
ADAPTERS = {
    "lora": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "qtha": QTHAConfig(r=4, inner_features=64, bond_dim=2, target_modules=["q_proj", "v_proj"]),
}


def bytes_saved(model, ids) -> int:
    """What autograd really keeps: the storages of saved tensors that are no parameters, each once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.get_base_model().base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
    kept[hidden.untyped_storage().data_ptr()] = hidden.untyped_storage()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["lora", "qtha"])
def test_the_trace_keeps_what_autograd_keeps_and_counts_what_is_computed(method, dtype):
    config = LlamaConfig(**SHAPE)
    plane = trace(config, ADAPTERS[method], dtype, length=48, checkpointing=False)
    model = get_peft_model(AutoModelForCausalLM.from_config(config, dtype=dtype), ADAPTERS[method]).train()
    ids = torch.randint(300, (3, 48))  # other numbers of sequences and layers than were traced
    expected = plane.at(3 * 48, 5)
    assert bytes_saved(model, ids) == pytest.approx(expected.kept, rel=0.05)
    with FlopCounterMode(display=False) as counter:
        model.get_base_model().base_model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
    assert counter.get_total_flops() == pytest.approx(expected.operations, rel=0.01)


def test_checkpointing_keeps_little_and_computes_more():
    config = LlamaConfig(**SHAPE)
    plain, saving = (
        trace(config, ADAPTERS["lora"], torch.bfloat16, length=48, checkpointing=c).at(96, 24) for c in (False, True)
    )
    assert saving.kept < plain.kept / 5
    assert saving.peak < plain.peak / 3
    assert 1.2 * plain.operations < saving.operations < 1.6 * plain.operations


_MEASURED = """
import json, resource, sys
import torch
import qpeft.training.trainer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig
from qpeft.training.labelled_loss import labelled_loss

def peak():
    try:  # what getrusage says may be the peak of the process that started this one
        with open("/proc/self/status") as status:
            return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

shape, batch, length, checkpointing = json.loads(sys.argv[1])
torch.set_num_threads(1)
libraries = peak()
base = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=torch.bfloat16)
model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).train()
if checkpointing:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
ids = torch.randint(shape["vocab_size"], (batch, length))
for _ in range(2):
    labelled_loss(model, {"input_ids": ids, "labels": ids})[0].backward()
    optimizer.step()
    optimizer.zero_grad()
print(json.dumps([libraries, peak()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="getrusage")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_is_that_of_a_process(checkpointing):
    shape = {**SHAPE, "vocab_size": 40_000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}
    batch, length = 2, 256
    arguments = json.dumps([shape, batch, length, checkpointing])
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _MEASURED, arguments], capture_output=True, text=True, check=True
    )
    libraries, peak = json.loads(said.stdout.splitlines()[-1])
    sizes = footprint.Sizes(
        LlamaConfig(**shape), ADAPTERS["lora"], torch.bfloat16, length, checkpointing, libraries=libraries
    )
    assert sizes.footprint(batch * length).peak == pytest.approx(peak, rel=0.10)
    assert peak - libraries > 150e6  # else the libraries decide


def test_most_tokens_fit_and_one_more_does_not():
    sizes = footprint.Sizes(LlamaConfig(**SHAPE), ADAPTERS["lora"], torch.bfloat16, 32, False, libraries=1e6)
    tokens = sizes.most_tokens(20e6)
    assert sizes.footprint(tokens).peak <= 20e6 < sizes.footprint(tokens + 1).peak
    assert sizes.most_tokens(1e6) == 0


def test_amounts_of_memory():
    assert footprint.parse_memory("7.5 GiB") == 7.5 * 2**30
    assert footprint.parse_memory("A100") == 80e9
    for wrong in ("8", "GB", "-1GB", "nanGB", "infGB", "0MB"):
        with pytest.raises(InputError, match="memory must be an amount"):
            footprint.parse_memory(wrong)


def test_an_adapter_that_does_not_fit_is_refused():
    wrong = LoraConfig(r=4, target_modules=["nowhere"])
    with pytest.raises(InputError, match="does not fit"):
        footprint.Sizes(LlamaConfig(**SHAPE), wrong, torch.bfloat16, 32, False)
