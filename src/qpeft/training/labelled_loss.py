"""Cross entropy computed only where there is a label.

TRL's fused head does this on GPUs; on a CPU it scores every position over the whole vocabulary, prompts and padding
too, which costs more than the rest of the step where the vocabulary is large and the answers are short.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

#: labelled positions projected at once: bounds the memory of their logits
POSITIONS = 512

#: fields of a config by which some architectures change their logits after the projection
_LOGIT_CHANGES = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def supports(model: Any) -> bool:
    """Whether the loss of this model is that of its backbone followed by a plain projection."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return False
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head = causal.get_output_embeddings()
    config = causal.config.get_text_config()
    return (
        type(head) is torch.nn.Linear
        and causal.base_model is not causal
        and not getattr(config, "output_router_logits", False)
        and all(getattr(config, name, None) in (None, 1, 1.0) for name in _LOGIT_CHANGES)
    )


def labelled_loss(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the cross entropies of all labelled positions.

    Args:
        model: A causal language model, with or without adapters in its layers.
        inputs: `input_ids`, `attention_mask` and `labels`, each `(batch, length)`; a label of -100 does not count.

    Returns:
        The summed loss, the number of positions whose likeliest token is the label, and the number of labels.
    """
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = causal.base_model(
        **{key: value for key, value in inputs.items() if key != "labels"}, use_cache=False
    ).last_hidden_state[:, :-1]  # (batch, length - 1, width)
    labels = inputs["labels"][:, 1:]  # (batch, length - 1)
    learned = labels != -100
    states, targets = hidden[learned], labels[learned]  # (n, width), (n,)
    head = causal.get_output_embeddings()

    def part(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional.linear(states, head.weight, head.bias)  # (positions, vocabulary)
        right = (logits.detach().argmax(-1) == targets).sum()
        return functional.cross_entropy(logits.float(), targets, reduction="sum"), right

    # a graph even without labels, so that backward has something to do
    total, right = states.sum() * 0.0, torch.zeros((), dtype=torch.long, device=states.device)
    for some, wanted in zip(states.split(POSITIONS), targets.split(POSITIONS), strict=True):
        if len(targets) > POSITIONS and torch.is_grad_enabled():
            loss, hits = checkpoint(part, some, wanted, use_reentrant=False)
        else:
            loss, hits = part(some, wanted)
        total, right = total + loss, right + hits
    return total.float(), right, learned.sum()
