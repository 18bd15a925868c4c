"""A small Llama, made from nothing in minutes: the base model of comparisons that anyone can repeat.

An adapter is judged on what it adds to a trained base. This module trains such a base, a `LlamaForCausalLM` of about
a million numbers, on templated arithmetic (:mod:`qpeft.training.pretraining_text`): it learns to read the stories,
to calculate, and to solve the short problems, while longer ones are left for the adapter to learn. It is not a
language model: it knows nothing but these texts.

The same settings on the same number of threads give the same weights, bit by bit, on one kind of machine. Weights
appear by one rename after the last step, so a killed pretraining leaves no model that is taken for a finished one.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qpeft.data.arithmetic import capacity, generate
from qpeft.errors import InputError, TrainingError
from qpeft.evaluation import Settings, run_task
from qpeft.models.cache import is_disk_full, sha256_of
from qpeft.training.keys import nearest
from qpeft.training.pretraining_text import make_texts, train_tokenizer
from qpeft.training.run_folder import versions, write_json

Say = Callable[[str], None]
Progress = Callable[[int, int, float], None]

RECORD = "pretraining.json"

#: tokens that the model can read at once; the longest problem with its solution has about 100
WINDOW = 256

#: problems of each length that the finished model is tried on
TRIED = 100


class Pretraining(BaseModel):
    """The settings of a small Llama.

    Example:
        >>> Pretraining(steps=500).largest
        30
        >>> read_pretraining({"witdh": 64})
        Traceback (most recent call last):
        ...
        qpeft.errors.InputError: unknown key pretrain.witdh; did you mean pretrain.width?
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    width: int = Field(128, ge=8, le=4096, description="of the residual stream; the feed-forward part has three times")
    layers: int = Field(4, ge=1, le=64)
    heads: int = Field(4, ge=1, description="of the attention; each has width / heads features, an even number")
    vocabulary: int = Field(512, ge=257, le=65536, description="most tokens; all bytes and the end are among them")
    max_steps: int = Field(1, ge=1, le=3, description="longest problems that are solved, in steps")
    story_steps: int = Field(3, ge=0, le=3, description="longest problems whose question is read; 0: none")
    largest: int = Field(30, ge=10, le=200, description="largest number in problems and equations")
    story_share: float = Field(0.2, ge=0, lt=1, description="share of the texts that are questions alone")
    equation_share: float = Field(0.3, ge=0, lt=1, description="share of the texts that are bare equations")
    steps: int = Field(2400, ge=1)
    batch_size: int = Field(16, ge=1, description="texts a step")
    learning_rate: float = Field(3e-3, gt=0, description="peak, after a warm-up; it falls as a cosine")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Pretraining:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be a multiple of 2 * heads = {2 * self.heads} (got {self.width}): rotary positions turn "
                "the features of a head in pairs"
            )
        if self.story_share + self.equation_share >= 1:
            raise ValueError(
                f"story_share and equation_share must add up to less than 1 (got "
                f"{self.story_share + self.equation_share:g}): solved problems need a share"
            )
        return self


def read_pretraining(values: Mapping[str, Any]) -> Pretraining:
    """Validate settings as they stand in a file.

    Raises:
        InputError: A key is unknown, or a value has the wrong type or lies outside its limits.
    """
    try:
        return Pretraining.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            raise InputError(
                f"unknown key pretrain.{key}{nearest(key, Pretraining.model_fields, 'pretrain.')}"
            ) from error
        message = problem["msg"].removeprefix("Value error, ")
        place = f"pretrain.{key} cannot be {problem['input']!r}: " if key else "pretrain: "
        raise InputError(place + message[:1].lower() + message[1:]) from error


def pretrain(
    settings: Pretraining,
    folder: str | Path,
    say: Say = lambda _: None,
    progress: Progress | None = None,
    made: Iterable[Path] = (),
) -> Path:
    """Make the small Llama of some settings, or find it made.

    Args:
        settings: What to make.
        folder: Where: afterwards an ordinary model folder (`config.json`, `model.safetensors`, tokenizer) with
            `pretraining.json`, which holds the settings, loss curve, counts of the text, versions, the SHA-256 of the
            weights and the accuracies on problems of one, two and three steps.
        say: Receives one sentence a stage.
        progress: Called with (steps done, steps in all, loss) after each step.
        made: Folders that may hold the same model: the first one that does is copied.

    Returns:
        The folder.

    Raises:
        InputError: The folder holds something else, another model, or one that was changed; or it cannot be written.
        TrainingError: The loss stopped being a number.
    """
    folder = Path(folder)
    with _held(folder):
        if _is_finished(settings, folder):
            say(f"the small Llama in {folder} is finished")
            return folder
        for leftover in folder.parent.glob(f".{folder.name}.partial-*"):  # of a killed process: we hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        try:
            same = next((other for other in made if _is_same(settings, other)), None)
            if same is not None:
                say(f"copying the small Llama of {same}")
                shutil.copytree(same, draft, dirs_exist_ok=True)
            else:
                _make(settings, draft, say, progress)
            draft.chmod(0o755)
            if folder.exists():
                folder.rmdir()  # empty, or it would have been refused
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other processes from the folder, and explain what a disk can do wrong."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            yield
    except Exception as error:
        if is_disk_full(error):
            raise InputError(f"the disk is full, and the small Llama does not fit into {folder}: free some") from error
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise InputError(f"the small Llama cannot be written to {folder} ({reason}): choose another") from error
        raise


def _is_finished(settings: Pretraining, folder: Path) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        made, weights = dict(record["settings"]), record["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is there and is no small Llama made here: choose an empty or new folder"
        ) from error
    for key, wanted in settings.model_dump().items():
        if made.get(key) != wanted:
            raise InputError(
                f"the small Llama in {folder} was made with {key} = {made.get(key)!r}, not {wanted!r}: "
                "choose another folder, or remove this one"
            )
    with suppress(OSError):
        if sha256_of(folder / "model.safetensors") == weights:
            return True
    raise InputError(f"the weights in {folder} are not those that were made there: remove the folder to make it again")


def _is_same(settings: Pretraining, folder: Path) -> bool:
    try:
        return _is_finished(settings, folder)
    except InputError:
        return False


def _make(settings: Pretraining, folder: Path, say: Say, progress: Progress | None) -> None:
    say("writing the texts")
    texts = make_texts(settings.seed, settings.max_steps, settings.story_steps, settings.largest)
    tokenizer = train_tokenizer(texts, settings.vocabulary, WINDOW)
    say(f"pretraining a small Llama: {settings.steps} steps of {settings.batch_size} texts")
    model = _new_model(settings, tokenizer)
    drawn = texts.draw(random.Random(settings.seed), settings.story_share, settings.equation_share)
    started = time.monotonic()
    losses, tokens = _train(settings, model, tokenizer, drawn, progress)
    seconds = time.monotonic() - started
    say("trying it on problems")
    accuracy = _accuracies(model, tokenizer, settings.largest)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {
        "settings": settings.model_dump(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "texts": {"solved": len(texts.solved), "stories": len(texts.stories), "equations": len(texts.equations)},
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "strict_accuracy": accuracy,
        "weights_sha256": sha256_of(folder / "model.safetensors"),
        "versions": versions(),
        "losses": losses,
    }
    write_json(folder / RECORD, record)


def _new_model(settings: Pretraining, tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=3 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config).float()


def _train(
    settings: Pretraining, model: Any, tokenizer: Any, texts: Iterator[str], progress: Progress | None
) -> tuple[list[float], int]:
    """AdamW with a warm-up over a twentieth of the steps, then a cosine down to a fiftieth of the learning rate.

    Returns:
        The loss of each step, over all tokens of a text, and the number of tokens.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    warm_up = max(1, settings.steps // 20)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warm_up) * (0.51 + 0.49 * math.cos(math.pi * step / settings.steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses, n_tokens = [], 0
    model.train()
    for step in range(settings.steps):
        ids, labels = _batch(list(islice(texts, settings.batch_size)), tokenizer)  # (batch, longest) each
        loss = model(input_ids=ids, labels=labels).loss
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss of the pretraining is {loss.item()} at step {step + 1}: lower pretrain.learning_rate "
                f"(now {settings.learning_rate:g})"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        n_tokens += int((labels != -100).sum())
        if progress is not None:
            progress(step + 1, settings.steps, losses[-1])
    model.eval()
    return losses, n_tokens


def _batch(texts: list[str], tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [row[:WINDOW] for row in tokenizer(texts)["input_ids"]]
    ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for place, row in enumerate(rows):
        # Padding follows the text, where causal attention does not look: no mask is needed.
        ids[place, : len(row)] = labels[place, : len(row)] = torch.tensor(row)
    return ids, labels


def _accuracies(model: Any, tokenizer: Any, largest: int) -> dict[str, float]:
    """Strict accuracy by the number of steps, on problems of the validation split."""
    accuracies = {}
    for steps in (1, 2, 3):
        n = min(TRIED, capacity("validation", steps, largest, min_steps=steps))
        chosen = [problem.to_example() for problem in generate(n, 0, "validation", steps, largest, min_steps=steps)]
        if chosen:
            result = run_task("arithmetic", model, tokenizer, chosen, Settings(batch_size=50))
            accuracies[str(steps)] = result.metrics["strict_accuracy"].value
    return accuracies
