"""The QTHA tuner: puts adapters on the linear layers of a model."""

import difflib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from peft import NoMatchingPeftModuleError, PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, get_quantization_kwargs
from torch import nn

from qpeft.adapters.qtha.architectures import Architecture
from qpeft.adapters.qtha.config import QTHAConfig
from qpeft.adapters.qtha.layer import QTHALayer, QTHALinear, refuse_if_not_linear, unsupported_module
from qpeft.errors import InputError

logger = logging.getLogger(__name__)

_OUTPUT_HEAD = "lm_head"


class QTHAModel(BaseTuner):
    """A model with QTHA adapters; created by ``peft.get_peft_model`` from a :class:`QTHAConfig`.

    Args:
        model: The model to adapt.
        config: Configuration of the first adapter.
        adapter_name: Its name.
    """

    prefix = "qtha_"
    tuner_layer_cls = QTHALayer
    target_module_mapping: dict[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Create the layers of an adapter in a model.

        Raises:
            InputError: No module has one of the names in ``target_modules``.
        """
        wanted = cast(QTHAConfig, self.peft_config[adapter_name]).target_modules
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except NoMatchingPeftModuleError as error:
            raise InputError(f"{error} {_nearest(model, wanted)}".strip()) from error
        if isinstance(wanted, (set, list)):
            names = [name for name, _ in model.named_modules()]
            missing = {w for w in wanted if not any(n == w or n.endswith(f".{w}") for n in names)}
            if missing and kwargs.get("state_dict") is None:
                logger.warning(
                    "no module is called %s, so only the others are adapted. %s",
                    " or ".join(sorted(missing)),
                    _nearest(model, missing),
                )

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> PeftConfig:
        model_type = model_config.get("model_type")
        if peft_config.target_modules is None and model_type not in self.target_module_mapping:
            raise InputError(
                f"no modules to adapt are known for model type {model_type!r}: name them with "
                f'target_modules=["..."], or use "all-linear". {_nearest(self.model, None)}'.strip()
            )
        return super()._prepare_adapter_config(peft_config, model_config)

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> bool | re.Match[str] | None:
        found = BaseTuner._check_target_module_exists(peft_config, key)
        # Trainers read lm_head.weight directly, past any adapter; so a pattern that happens to match the output head
        # leaves it alone, and only its own name adapts it.
        if found and key.rpartition(".")[2] == _OUTPUT_HEAD:
            targets = peft_config.target_modules or ()
            by_name = _OUTPUT_HEAD in targets if isinstance(targets, str) else any(_OUTPUT_HEAD in t for t in targets)
            return found if by_name else False
        return found

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        architecture = self._architecture_at(peft_config, current_key)
        if isinstance(target, QTHALayer):
            target.update_layer(adapter_name, peft_config, architecture, inference_mode=peft_config.inference_mode)
            return
        quantization = get_quantization_kwargs(self)
        base_layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not QTHALayer.supports(base_layer, **quantization):
            raise unsupported_module(current_key, base_layer)
        layer = QTHALinear(target, adapter_name, peft_config, architecture, **quantization)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained until it is chosen
        self._replace_module(parent, target_name, layer, target)

    def _architecture_at(self, config: QTHAConfig, key: str) -> Architecture:
        """The parts of the adapter at one module: fewer in the first and last layers that are kept classical."""
        if not config.n_classical_first and not config.n_classical_last:
            return config.architecture
        match = re.match(r"(.*?)\.(\d+)\.", key)
        if match is None:
            raise InputError(
                f"n_classical_first and n_classical_last count decoder layers, and module {key!r} is not in a "
                "numbered list of layers: leave it out of target_modules, or set both to 0"
            )
        stack, index = match.group(1), int(match.group(2))
        n_layers = len(list(self.model.get_submodule(stack).children()))
        if index < config.n_classical_first or index >= n_layers - config.n_classical_last:
            return config.architecture.without_branch()
        return config.architecture

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise InputError(
                "adapter_names in a forward call (another adapter for each row of a batch) is not supported by QTHA: "
                "group the rows by adapter and switch with set_adapter"
            )
        yield

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Add adapters to the base weights, keeping them for ``unmerge_adapter``.

        Raises:
            MergeError: An adapter is not a fixed matrix; nothing has been merged then.
        """
        self._refuse_if_not_linear(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:  # peft's annotation says None, and its code returns the base model
        if merge:
            self._refuse_if_not_linear(adapter_names)
        return super()._unload_and_optionally_merge(
            merge=merge, progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
        )

    def _refuse_if_not_linear(self, adapter_names: list[str] | None) -> None:
        for module in self.model.modules():
            if isinstance(module, QTHALayer):
                for name in adapter_names or module.active_adapters:
                    refuse_if_not_linear(module, name)


def _nearest(model: nn.Module, wanted: set[str] | list[str] | str | None) -> str:
    """A hint with the names of the linear layers nearest to what was asked for."""
    names = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if QTHALayer.supports(module)})
    words = [wanted] if isinstance(wanted, str) else sorted(wanted or ())
    near = sorted({match for word in words for match in difflib.get_close_matches(word, names, n=2)})
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Linear layers of this model: {', '.join(names[:20])}." if names else ""
