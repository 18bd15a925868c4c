"""Cross entropy computed only where there is a label, and for a few positions at a time.

TRL's fused head does this on GPUs; on a CPU it scores every position over the whole vocabulary, prompts and padding
too, which costs more than the rest of the step where the vocabulary is large and the answers are short.

With states h (n, width) and the head's frozen matrix W (vocabulary, width),

    loss = sum_i logsumexp(W h_i) - (W h_i)[t_i]        d loss / d h_i = (softmax(W h_i) - onehot(t_i)) W

and the gradient needs nothing that the loss has not computed already. Both are therefore taken in one go over a few
positions, whose logits are then forgotten (as in Liger's kernels, arXiv:2410.10989): the logits of a batch never exist
together, and none is computed twice. Logits are rounded to the head's precision and the cross entropy is taken in
float32, as transformers and TRL do.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional

#: logits computed at once; each takes 4 bytes, and twice its own precision
LOGITS = 2**24

#: fields of a config by which some architectures change their logits after the projection
_LOGIT_CHANGES = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def supports(model: Any) -> bool:
    """Whether the loss of this model is that of its backbone followed by a plain, frozen projection."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return False
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head = causal.get_output_embeddings()
    config = causal.config.get_text_config()
    return (
        type(head) is torch.nn.Linear
        and not any(parameter.requires_grad for parameter in head.parameters())
        and causal.base_model is not causal
        and not getattr(config, "output_router_logits", False)
        and all(getattr(config, name, None) in (None, 1, 1.0) for name in _LOGIT_CHANGES)
    )


def labelled_loss(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the cross entropies of all labelled positions.

    Args:
        model: A causal language model, with or without adapters in its layers, whose head is frozen.
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
    total, right = _HeadLoss.apply(states, targets, head.weight, head.bias)
    return total, right, learned.sum()


class _HeadLoss(torch.autograd.Function):
    """Summed cross entropy and number of hits; the gradient for the states is computed along with them."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        right = torch.zeros((), dtype=torch.long, device=states.device)
        positions = max(1, LOGITS // weight.shape[0])
        for start in range(0, len(targets), positions):
            part = slice(start, start + positions)
            logits, wanted = functional.linear(states[part], weight, bias), targets[part, None]  # (p, vocabulary), ...
            likeliest = logits.argmax(-1, keepdim=True)  # (p, 1)
            right += (likeliest == wanted).sum()
            highest, labelled = logits.gather(-1, likeliest).float(), logits.gather(-1, wanted).float()
            dtype = logits.dtype
            powers = logits.float()
            del logits
            powers.sub_(highest).exp_()  # in place: (p, vocabulary) in float32 is what takes the memory
            norms = powers.sum(-1, keepdim=True)  # (p, 1)
            total += (norms.log() + highest - labelled).sum()
            if gradient is not None:
                powers.div_(norms).scatter_add_(-1, wanted, torch.full_like(norms, -1.0))
                gradient[part] = powers.to(dtype) @ weight.to(dtype)  # (p, width)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * gradients[0]).to(gradient.dtype), None, None, None
