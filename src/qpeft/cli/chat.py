"""`qpeft chat`: talk to a run, an adapter or a base model; the answer appears as it is written."""

from __future__ import annotations

from typing import Any

from qpeft.cli.console import Steps, calm_libraries, notes, results

HELP = "/reset begins a new conversation, /quit (or Ctrl-D) ends"


def run(target: str, system: str | None, max_new_tokens: int, temperature: float, seed: int) -> None:
    with Steps() as say:
        say("starting")
        calm_libraries()
        from qpeft.training.target import open_target

        opened = open_target(target, say=say)
    if opened.recipe is not None and system is None:
        system = opened.recipe.data.system
    format: Any = opened.recipe.data.format if opened.recipe else "auto"
    notes.print(HELP)
    messages: list[dict[str, str]] = []
    turn = 0
    while True:
        try:
            text = input("you: ").strip()
        except EOFError:
            return
        if text in ("/quit", "/exit"):
            return
        if text == "/reset":
            messages = []
            continue
        if not text:
            continue
        asked = [*messages, {"role": "user", "content": text}]
        answer = _answer(opened, asked, format, system, max_new_tokens, temperature, seed + turn)
        if answer is not None:
            messages = [*asked, {"role": "assistant", "content": answer}]
        turn += 1


def _answer(
    opened: Any,
    messages: list[dict[str, str]],
    format: Any,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> str | None:
    """Stream one answer, or say why there is none; Ctrl-C ends the answer, not the conversation."""
    import torch
    from transformers import TextStreamer

    from qpeft.data import render

    class Collecting(TextStreamer):
        text = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text
            results.print(text, end="\n" if stream_end else "", markup=False, soft_wrap=True)

    prompt = render(messages, opened.tokenizer, add_generation_prompt=True, system=system, format=format)
    ids = opened.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(opened.model.device)
    window = getattr(opened.model.config, "max_position_embeddings", None)
    if window is not None and ids["input_ids"].shape[1] + max_new_tokens > window:
        notes.print(f"[yellow]the conversation has outgrown the model's window of {window} tokens: /reset[/]")
        return None
    streamer = Collecting(opened.tokenizer, skip_prompt=True, skip_special_tokens=True)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    torch.manual_seed(seed)
    try:
        with torch.no_grad():
            opened.model.generate(
                **ids, max_new_tokens=max_new_tokens, streamer=streamer, pad_token_id=opened.tokenizer.pad_token_id,
                **sampling,
            )  # fmt: skip
    except KeyboardInterrupt:
        results.print()
    return streamer.text.strip()
