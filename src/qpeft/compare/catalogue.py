"""Arms by name: the controls without which a number says nothing, each built from the adapter under test.

adapter                     what is under test
lora, lora-same-init        LoRA at the same rank and scale; with A drawn as large as QTHA's
METHOD-same-count           a method of peft sized to as many trained numbers: lora, oft, vera, lokr, fourierft, ...
lora-same-init-same-count   both for LoRA
no-circuit                  the circuit and its W_q left out
no-entanglers               every CRZ an RZ: as many angles, no entanglement
frozen-circuit              angles random, and never trained
classical, surrogate        a pointwise SiLU or sine network of the circuit's size in its place
classical-dense             a dense SiLU network in its place
branch-zero, branch-mean    the trained adapter, the circuit's outputs replaced by 0 or by their mean
base                        nothing trained

Everything else stays as it is in the adapter under test: places, rank, scale, tensor network, start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qpeft.compare.arm_spec import ArmSpec, Subject, entangles, has_circuit
from qpeft.compare.counting import adapted, count_trained
from qpeft.compare.knobs import KNOBS
from qpeft.compare.matching import match_count
from qpeft.compare.own_arms import OwnArm, read_own_arm
from qpeft.compare.results import ArmInfo
from qpeft.errors import InputError
from qpeft.training.keys import nearest
from qpeft.training.recipe import AdapterSection

#: LoRA draws A with a = sqrt(5) where QTHA has a = 0: by so much smaller
_INITIAL_GAIN = round(math.sqrt(6), 6)

#: alpha / r of a LoRA beside a method that has no such scale: peft's and everyone's habit
_USUAL_SCALING = 2.0

_SAME_COUNT = "-same-count"

#: an arm without angles must not be given a rate for them
_NO_ANGLES: dict[str, Any] = {"angle_learning_rate": None}


def build_arms(entries: Sequence[str | Mapping[str, Any]], adapter: Mapping[str, Any], model: Any) -> list[ArmSpec]:
    """Resolve the arms of a comparison on one base model.

    Args:
        entries: Names of the catalogue, or own arms: `{name, adapter, label?, training?, learning_rates?}`,
            `{name, of, branch | execution, label?}`, or `{name, label?, training?, learning_rates?}` to change those
            of an arm of the catalogue.
        adapter: Adapter section of the recipe, what is under test.
        model: The base on the meta device (:func:`qpeft.models.empty.empty_model`).

    Raises:
        InputError: An unknown name or key, a name twice, an arm that makes no sense for the adapter, or an adapter
            that does not fit the model.

    Example:
        >>> from qpeft.compare.catalogue import build_arms
        >>> from qpeft.models.empty import empty_model
        >>> adapter = {"r": 4, "bond_dim": 3, "inner_features": 32, "target_modules": ["q_proj", "v_proj"]}
        >>> arms = build_arms(["adapter", "lora", "no-entanglers"], adapter, empty_model("smollm2-135m-instruct"))
        >>> [(arm.name, arm.trainable) for arm in arms]
        [('adapter', 49380), ('lora', 230400), ('no-entanglers', 49380)]
    """
    subject = Subject(adapter, model)
    arms: list[ArmSpec] = []
    for entry in entries:
        arm = _from_catalogue(entry, subject) if isinstance(entry, str) else _from_mapping(entry, subject)
        if any(other.name == arm.name for other in arms):
            raise InputError(f"arms holds {arm.name} twice: leave one out, or give it another name")
        arms.append(arm)
    return [arm if arm.of is None else _evaluation(arm, arms) for arm in arms]


def catalogue() -> list[str]:
    """All names of the catalogue."""
    return [*_ARMS, *(f"{method}{_SAME_COUNT}" for method in KNOBS)]


def _from_catalogue(name: str, subject: Subject) -> ArmSpec:
    method = name.removesuffix(_SAME_COUNT)
    try:
        if name in _ARMS:
            return _ARMS[name](name, subject)
        if method != name and method in KNOBS:
            return _same_count(name, subject, method)
    except InputError as error:
        raise InputError(f"arm {name}: {error}") from error
    names = catalogue()
    raise InputError(f"there is no arm {name!r}{nearest(name, names)}; there are: {', '.join(names)}")


def _from_mapping(entry: Mapping[str, Any], subject: Subject) -> ArmSpec:
    own = read_own_arm(entry)
    if own.of is not None:
        info = ArmInfo(own.name, own.label or own.name, "evaluation", f"The arm {own.of}, evaluated otherwise.")
        return ArmSpec(info, of=own.of, branch=own.branch, execution=own.execution)
    if own.name in catalogue():
        if own.adapter is not None:
            raise InputError(
                f"arm {own.name} is one of the catalogue: give your own another name, or leave out adapter"
            )
        arm = _from_catalogue(own.name, subject)
        if arm.adapter is None and (own.training or own.learning_rates):
            raise InputError(f"arm {own.name} trains nothing: leave out training and learning_rates")
        info = replace(arm.info, label=own.label or arm.info.label)
        rates = own.learning_rates or arm.learning_rates
        return replace(arm, info=info, training={**arm.training, **own.training}, learning_rates=rates)
    if own.adapter is None:
        raise InputError(
            f"arm {own.name} has neither adapter nor of, and is none of the catalogue{nearest(own.name, catalogue())}"
        )
    return _own(own, own.adapter, subject)


def _own(own: OwnArm, section: dict[str, Any], subject: Subject) -> ArmSpec:
    try:
        config = adapted(subject.model, section).active_peft_config
        trainable = count_trained(subject.model, section)
    except InputError as error:
        raise InputError(f"arm {own.name}: {error}") from error
    same = type(config) is type(subject.config)
    note = f"An arm of this plan's own: {subject.against(trainable)}."
    info = ArmInfo(own.name, own.label or own.name, "control" if same else "reference", note, entangles(config))
    training = own.training if has_circuit(config) else {**_NO_ANGLES, **own.training}
    return ArmSpec(info, section, training, own.learning_rates, trainable=trainable)


def _evaluation(arm: ArmSpec, arms: list[ArmSpec]) -> ArmSpec:
    """An arm that evaluates another's numbers, checked against what that is."""
    of = next((other for other in arms if other.name == arm.of), None)
    if of is None:
        raise InputError(f"arm {arm.name} evaluates the arm {arm.of!r}, which is not among arms: add it")
    config = None if of.adapter is None else AdapterSection(**of.adapter).build()
    if not has_circuit(config):
        raise InputError(
            f"arm {arm.name} changes where circuits of the arm {of.name} run, and that has none: leave it out"
        )
    return replace(arm, info=replace(arm.info, circuit=arm.branch is None and entangles(config)))


def _adapter(name: str, subject: Subject) -> ArmSpec:
    rank = "" if subject.rank is None else f" (r = {subject.rank})"
    note = f"What is under test: {subject.trainable:,} trained numbers, {subject.angles:,} of them angles."
    label = subject.method.upper() if subject.qtha is not None else _label(subject.method)
    info = ArmInfo(name, f"{label}{rank}", "adapter", note, entangles(subject.config))
    return ArmSpec(info, subject.section, trainable=subject.trainable)


def _lora(name: str, subject: Subject) -> ArmSpec:
    same_init = "same-init" in name
    if subject.method == "lora":
        raise InputError("the adapter under test is LoRA itself: leave the arm out")
    if subject.rank is None or subject.scaling is None:
        raise InputError(f"method {subject.method} has no rank and scale that LoRA could share: use lora{_SAME_COUNT}")
    section = {**subject.elsewhere("lora"), "r": subject.rank, "lora_alpha": _alpha(subject.scaling, subject.rank)}
    if same_init:
        section |= _gain(subject)
    trainable = count_trained(subject.model, section)
    start = "A drawn as large as QTHA's" if same_init else "stock start"
    note = f"LoRA at the same rank, scale and places, {start}: {subject.against(trainable)}."
    label = f"LoRA{', same start' if same_init else ''} (r = {subject.rank})"
    return ArmSpec(ArmInfo(name, label, "reference", note), section, _NO_ANGLES, trainable=trainable)


def _same_count(name: str, subject: Subject, method: str) -> ArmSpec:
    if method == subject.method:
        raise InputError(f"the adapter under test is {method} itself: leave the arm out")
    section = subject.elsewhere(method)
    scaling, rank = subject.scaling or _USUAL_SCALING, subject.rank or 8
    alpha = KNOBS[method].alpha
    if alpha is not None:
        section |= {"r": rank, alpha: _alpha(scaling, rank)}
    same_init = "same-init" in name
    if same_init:
        section |= _gain(subject)
    match = match_count(section, subject.trainable, subject.model)
    label = f"{_label(method)}, {'same start, ' if same_init else ''}same count"
    info = ArmInfo(name, label, "matched", f"{match.sentence()[:1].upper()}{match.sentence()[1:]}.")
    return ArmSpec(info, match.section, _NO_ANGLES, trainable=match.count)


def _gain(subject: Subject) -> dict[str, Any]:
    if subject.qtha is None:
        raise InputError(f"the start of method {subject.method} is not known here: leave the arm out")
    return {"initial_gain": _INITIAL_GAIN}


def _control(name: str, subject: Subject, label: str, what: str, **changes: Any) -> ArmSpec:
    """The adapter under test with some fields changed."""
    section = {**subject.section, **changes}
    built = adapted(subject.model, section)
    trainable = count_trained(subject.model, section)
    config = built.active_peft_config
    info = ArmInfo(name, label, "control", f"{what}: {subject.against(trainable)}.", entangles(config))
    return ArmSpec(info, section, {} if has_circuit(config) else _NO_ANGLES, trainable=trainable)


def _network(subject: Subject, kind: str) -> str:
    """The architecture with a classical network in the circuit's place."""
    config = _with_circuit(subject)
    if not config.architecture.linear:
        raise InputError(f'the network stands beside a linear branch, which arch="{config.arch}" has not')
    if kind == "classical" and config.fusion == "product":
        raise InputError('a dense network starts at zero, and fusion="product" with zero would never learn')
    return f"mpo+{kind}" if config.architecture.tensor_network else kind


def _with_circuit(subject: Subject) -> Any:
    """The config of an adapter with circuits."""
    if subject.qtha is None:
        raise InputError(f"the adapter under test is of method {subject.method} and has no circuit: leave the arm out")
    if not has_circuit(subject.qtha):
        raise InputError(f'the adapter under test (arch="{subject.qtha.arch}") has no circuit: leave the arm out')
    return subject.qtha


def _no_circuit(name: str, subject: Subject) -> ArmSpec:
    arch = _with_circuit(subject).architecture.without_branch().name
    what = f'The circuit left out (arch="{arch}"), the rest as it is'
    return _control(name, subject, "no circuit", what, arch=arch, fusion="linear")


def _no_entanglers(name: str, subject: Subject) -> ArmSpec:
    if not entangles(_with_circuit(subject)):
        raise InputError("the circuit of the adapter under test has no entanglement: leave the arm out")
    what = "Every CRZ replaced by an RZ of its target"
    return _control(name, subject, "no entanglers", what, entanglement="none")


def _frozen_circuit(name: str, subject: Subject) -> ArmSpec:
    config = _with_circuit(subject)
    note = f"Random angles that are never trained: {subject.against(subject.trainable - subject.angles)}."
    info = ArmInfo(name, "frozen circuit", "control", note, entangles(config))
    trainable = subject.trainable - subject.angles
    return ArmSpec(info, subject.section, {"angle_learning_rate": 0}, trainable=trainable)


def _classical(name: str, subject: Subject) -> ArmSpec:
    what = "A pointwise SiLU network in place of the circuit"
    arch = _network(subject, "pointwise")
    return _control(name, subject, "classical, same count", what, arch=arch, pointwise="silu")


def _surrogate(name: str, subject: Subject) -> ArmSpec:
    what = "A pointwise network of sines in place of the circuit"
    arch = _network(subject, "pointwise")
    return _control(name, subject, "sine surrogate", what, arch=arch, pointwise="sin")


def _classical_dense(name: str, subject: Subject) -> ArmSpec:
    what = "A dense SiLU network of two layers in place of the circuit"
    arch = _network(subject, "classical")
    return _control(name, subject, "classical, dense", what, arch=arch, classical_layers=2)


def _branch_zero(name: str, subject: Subject) -> ArmSpec:
    _with_circuit(subject)
    note = "The trained adapter with 0 in place of every output of its circuits."
    return ArmSpec(ArmInfo(name, "circuit's output 0", "evaluation", note), of="adapter", branch="off")


def _branch_mean(name: str, subject: Subject) -> ArmSpec:
    _with_circuit(subject)
    note = "The trained adapter with the mean over training tokens in place of every output of its circuits."
    return ArmSpec(ArmInfo(name, "circuit's output constant", "evaluation", note), of="adapter", branch="mean")


def _base(name: str, subject: Subject) -> ArmSpec:
    return ArmSpec(ArmInfo(name, "frozen base", "base", "The base model, nothing trained."))


def _label(method: str) -> str:
    """A method's name as papers write it."""
    names = {
        "lora": "LoRA", "oft": "OFT", "vera": "VeRA", "lokr": "LoKr", "loha": "LoHa", "ia3": "IA3",
        "fourierft": "FourierFT", "waveft": "WaveFT", "tinylora": "TinyLoRA", "randlora": "RandLoRA", "hra": "HRA",
        "delora": "DeLoRA", "c3a": "C3A", "miss": "MiSS", "hira": "HiRA",
    }  # fmt: skip
    return names.get(method, method)


def _alpha(scaling: float, rank: int) -> float | int:
    alpha = scaling * rank
    return int(alpha) if float(alpha).is_integer() else alpha


_ARMS: dict[str, Callable[[str, Subject], ArmSpec]] = {
    "adapter": _adapter,
    "lora": _lora,
    "lora-same-init": _lora,
    "lora-same-init-same-count": lambda name, subject: _same_count(name, subject, "lora"),
    "no-circuit": _no_circuit,
    "no-entanglers": _no_entanglers,
    "frozen-circuit": _frozen_circuit,
    "classical": _classical,
    "surrogate": _surrogate,
    "classical-dense": _classical_dense,
    "branch-zero": _branch_zero,
    "branch-mean": _branch_mean,
    "base": _base,
}
