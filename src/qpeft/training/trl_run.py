"""One run through TRL's trainers, from read arguments to the saved adapter.

    sft    log p(completion)                                                               TRL's SFTTrainer
    dpo    log sigmoid beta [log p/p_ref (chosen) - log p/p_ref (rejected)]                 Rafailov et al., 2305.18290
    grpo   advantage x ratio, advantage = (reward - mean of group) / std of group           Shao et al., 2402.03300

The reference model of DPO, and of GRPO with beta > 0, costs no second copy of the base: it is the base with the
adapter switched off, or, where the run starts from a trained adapter (`adapter.start_from`), a frozen copy of that
adapter beside the trained one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOTrainer, GRPOTrainer, ModelConfig, SFTTrainer, get_quantization_config
from trl.trainer.utils import create_model_from_path

from qpeft.errors import InputError, Interrupted, MissingDependencyError, TrainingError
from qpeft.models import ResolvedModel, load_model, load_tokenizer, resolve_model
from qpeft.training import ranks
from qpeft.training.callbacks import FiniteNumbers, StopOnSignal
from qpeft.training.memory import OutOfMemory, is_out_of_memory, told_if_out_of_memory
from qpeft.training.memory_check import check_weights
from qpeft.training.run import Say, parameter_table
from qpeft.training.start import load_trained, scale_lora_start
from qpeft.training.trackers import check_trackers
from qpeft.training.trl_arguments import TrlArguments, sentence
from qpeft.training.trl_card import last_metrics, write_card
from qpeft.training.trl_data import load_sets

#: the name TRL gives to the frozen copy of a trained adapter
_REFERENCE = "ref"


@dataclass(frozen=True)
class TrlResult:
    """The numbers of a finished run: `metrics` holds the last value of each that the trainer logged."""

    output: str
    steps: int
    seconds: float
    parameters: dict[str, int]
    metrics: dict[str, float]


class _OwnSaving:
    """Mixed into TRL's trainers: our model card, and no copy of the reference in what is saved."""

    qpeft_arguments: TrlArguments
    args: Any
    model: Any
    state: Any

    def create_model_card(self, *_: Any, **__: Any) -> None:
        if self.args.process_index == 0:
            write_card(self.qpeft_arguments, self.model, self.state, Path(self.args.output_dir))

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        super()._save(output_dir, *args, **kwargs)  # type: ignore[misc]
        if self.args.should_save:  # a resumed run makes the reference again, from what it started from
            shutil.rmtree(Path(output_dir or self.args.output_dir) / _REFERENCE, ignore_errors=True)


class _SFT(_OwnSaving, SFTTrainer):
    pass


class _DPO(_OwnSaving, DPOTrainer):
    pass


class _GRPO(_OwnSaving, GRPOTrainer):
    pass


_TRAINERS: dict[str, Any] = {"sft": _SFT, "dpo": _DPO, "grpo": _GRPO}


def run_trl(
    arguments: TrlArguments,
    rewards: Sequence[Callable[..., Any]] = (),
    callbacks: Sequence[TrainerCallback] = (),
    say: Say = lambda _: None,
) -> TrlResult:
    """Train an adapter with a trainer of TRL and save it with tokenizer, card and trainer's state.

    Args:
        arguments: What `read_arguments` gave.
        rewards: For GRPO; the model of `reward_model_name_or_path` is added to them.
        callbacks: Of the caller, such as its display of progress.
        say: Receives one sentence a step of the preparation.

    Raises:
        InputError: Something cannot be used; nothing has been written.
        TrainingError: The adapter or its gradient stopped being a number, or the memory did not suffice.
        Interrupted: The user stopped the run; a checkpoint has been saved.
    """
    settings = arguments.training
    ranks.join()
    stop = StopOnSignal()
    with ranks.together():
        start = _checkpoint(arguments)
        trainer = _prepared(arguments, rewards, [FiniteNumbers(), stop, *callbacks], say)
    ranks.keep(trainer)
    started = time.monotonic()
    try:
        with stop, ranks.told_if_lost():
            trainer.train(resume_from_checkpoint=start)
    except ranks.RankLost as error:
        raise ranks.RankLost(
            f"{error}; checkpoints saved before are in {settings.output_dir}: go on with the same command and "
            "--resume_from_checkpoint last"
        ) from error
    except TrainingError as error:
        raise TrainingError(
            f"{error}: lower learning_rate; what was saved before is in {settings.output_dir}"
        ) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"the memory did not suffice at step {trainer.state.global_step + 1}; checkpoints saved before are in "
            f"{settings.output_dir}: go on with --resume_from_checkpoint last and --gradient_checkpointing true, or "
            "a smaller --per_device_train_batch_size and a larger --gradient_accumulation_steps"
        ) from error
    finally:
        for callback in callbacks:
            getattr(callback, "close", lambda: None)()
    with ranks.together():
        if stop.stopped_at is not None:
            raise Interrupted(
                f"stopped at step {stop.stopped_at} of {trainer.state.max_steps}, everything is saved; go on with the "
                "same command and --resume_from_checkpoint last"
            )
    seconds = time.monotonic() - started
    trainer.save_model(settings.output_dir)
    trainer.save_state()
    trainer.create_model_card()
    if settings.push_to_hub:
        trainer.push_to_hub(dataset_name=arguments.script.dataset_name)
    result = TrlResult(
        settings.output_dir,
        trainer.state.global_step,
        seconds,
        parameter_table(trainer.accelerator.unwrap_model(trainer.model)),
        last_metrics(trainer.state),
    )
    if hasattr(trainer, "end"):  # from transformers 5.18 on
        trainer.end()  # trackers and, of several processes, their group
    return result


def _prepared(
    arguments: TrlArguments, rewards: Sequence[Callable[..., Any]], callbacks: list[TrainerCallback], say: Say
) -> Any:
    """The trainer, ready to start."""
    settings = arguments.training
    report_to = [settings.report_to] if isinstance(settings.report_to, str) else list(settings.report_to or [])
    check_trackers([name for name in report_to if name not in ("none", "all")])
    options: dict[str, Any] = {}
    if arguments.kind == "grpo":
        options["reward_funcs"] = _rewards(arguments, rewards, say)
    if not arguments.model.model_name_or_path:
        raise InputError("no base model is named: give --model_name_or_path smollm2-135m-instruct, a folder or a file")
    resolved = resolve_model(arguments.model.model_name_or_path, progress=say)
    tokenizer = load_tokenizer(resolved)
    train, test = _sets(arguments, tokenizer)
    _check_memory(arguments, resolved)
    with told_if_out_of_memory(f"loading {resolved.reference}"):
        model = _base(arguments, resolved, say)
    if arguments.adapter.start_from is None:
        options["peft_config"] = _adapter_config(arguments)
    else:  # with an adapter that is there already, TRL takes a copy of it as the reference
        model = _started(arguments, model)
    return _trainer(arguments, model, train, test, tokenizer, callbacks, options)


def _check_memory(arguments: TrlArguments, resolved: ResolvedModel) -> None:
    model = arguments.model
    if ranks.asks_for_shards() or arguments.training.model_init_kwargs or arguments.training.trust_remote_code:
        return
    kind = "4bit" if model.load_in_4bit else "8bit" if model.load_in_8bit else None
    check_weights(str(resolved.folder), _adapter_config(arguments), model.dtype or "auto", kind)


def _checkpoint(arguments: TrlArguments) -> str | None:
    """The checkpoint to go on from."""
    folder = Path(arguments.training.output_dir)
    wanted = arguments.training.resume_from_checkpoint
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if not wanted or str(wanted).lower() == "false":
        if last is not None or (folder / "adapter_config.json").exists():
            raise InputError(
                f"{folder} already holds a run: go on with it (--resume_from_checkpoint last), or set output_dir to "
                "another folder"
            )
        return None
    if str(wanted).lower() in ("true", "last"):
        if last is None:
            raise InputError(f"{folder} holds no checkpoint to go on from: leave resume_from_checkpoint out")
        return str(last)
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise InputError(f"resume_from_checkpoint names {wanted}, which is no checkpoint: give its folder, or last")
    return str(wanted)


def _rewards(arguments: TrlArguments, rewards: Sequence[Callable[..., Any]], say: Say) -> list[Any]:
    script = arguments.script
    models = [script.reward_model_name_or_path] if script.reward_model_name_or_path else []
    if not rewards and not models:
        raise InputError(
            "grpo needs a reward: give --reward_funcs exact_answer, another name, the dotted path of a function, or "
            "--reward_model_name_or_path"
        )
    return [*(str(resolve_model(name, progress=say).folder) for name in models), *rewards]


def _sets(arguments: TrlArguments, tokenizer: PreTrainedTokenizerBase) -> tuple[Any, Any | None]:
    own, settings = arguments.own, arguments.training
    train, test = load_sets(
        arguments.kind,
        arguments.script,
        arguments.mixture,
        tokenizer,
        evaluated=settings.eval_strategy != "no",
        problems=own.arithmetic_problems,
        steps=own.arithmetic_steps,
        largest=own.arithmetic_largest,
        seed=settings.data_seed or 0,
        system=own.system,
    )
    if arguments.kind == "grpo" and "exact_answer" in (arguments.script.reward_funcs or []):
        columns = train.column_names or ()
        if "answer" not in columns:
            raise InputError(f"exact_answer needs a column answer, and the data set has {', '.join(columns)}")
    return train, test


def _base(arguments: TrlArguments, resolved: ResolvedModel, say: Say) -> Any:
    """The base model, on the CPU: the trainer moves it, or its shards, to where it belongs."""
    model: ModelConfig = arguments.model
    extra = dict(arguments.training.model_init_kwargs or {})
    quantisation = _quantisation(model)
    if model.model_revision not in (None, "main"):
        raise InputError(
            f"model_revision is {model.model_revision}, and models are taken as they are now: download that revision "
            "and give its folder"
        )
    if quantisation is None and not extra and not arguments.training.trust_remote_code:
        loaded: Any = load_model(resolved, dtype=model.dtype or "auto", device="cpu", progress=say)
        if model.attn_implementation:
            _explained(lambda: loaded.set_attn_implementation(model.attn_implementation), "attn_implementation")
        return loaded
    options = {
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        "trust_remote_code": arguments.training.trust_remote_code,
        **({} if quantisation is None else {"quantization_config": quantisation}),
        **extra,
    }
    say(f"loading {resolved.reference}")
    loaded = _explained(lambda: create_model_from_path(str(resolved.folder), **options), "base model")
    loaded.name_or_path = loaded.config.name_or_path = resolved.reference
    return loaded


def _quantisation(model: ModelConfig) -> Any:
    if not (model.load_in_4bit or model.load_in_8bit):
        return None
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError("load_in_4bit and load_in_8bit need bitsandbytes: pip install bitsandbytes")
    return get_quantization_config(model)


def _adapter_config(arguments: TrlArguments) -> Any:
    config = arguments.adapter.build()
    config.task_type = "CAUSAL_LM"
    return config


def _started(arguments: TrlArguments, model: Any) -> PeftModel:
    """The base with the adapter that an earlier run has trained."""
    set_seed(arguments.training.seed)
    adapted = _fitting(arguments, lambda: get_peft_model(model, _adapter_config(arguments)))
    load_trained(adapted, str(arguments.adapter.start_from))
    return adapted


def _trainer(
    arguments: TrlArguments, model: Any, train: Any, test: Any, tokenizer: Any, callbacks: list[Any], options: Any
) -> Any:
    settings = arguments.training
    settings.model_init_kwargs = None  # used already
    settings.disable_tqdm = True
    quantised = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    trainer = _fitting(
        arguments,
        lambda: _TRAINERS[arguments.kind](
            model=model, args=settings, train_dataset=train, eval_dataset=test, processing_class=tokenizer,
            callbacks=callbacks, **options,
        ),
    )  # fmt: skip
    if arguments.adapter.initial_gain is not None and arguments.adapter.start_from is None:
        scale_lora_start(trainer.model, arguments.adapter.initial_gain)
    trainer.qpeft_arguments = arguments
    trainer.remove_callback(PrinterCallback)  # whoever starts a run shows its progress
    if quantised:  # TRL casts what is trained to bfloat16 there, which angles are too coarse in
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer


def _fitting(arguments: TrlArguments, make: Callable[[], Any]) -> Any:
    """What `make` gives; what peft or TRL dislike about the adapter or the settings is one sentence."""
    try:
        return make()
    except InputError:
        raise
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        reason = sentence(error) if isinstance(error, ValueError | ImportError) else arguments.adapter.explain(error)
        raise InputError(f"{arguments.kind} cannot start with these settings: {reason}") from error


def _explained(load: Callable[[], Any], what: str) -> Any:
    try:
        return load()
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise InputError(f"the {what} cannot be used: {sentence(error)}") from error
