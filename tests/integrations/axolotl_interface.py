"""What a plugin sees of axolotl, written down from its version 0.18.0: names, parameters and defaults, and no more.

Source: `src/axolotl/integrations/base.py` of axolotl-ai-cloud/axolotl at commit
067b021c8b87a9e5e380b9173c704cf7340e30f5; the same hooks are in the package 0.19.0. `cfg` is a mapping whose keys are
attributes too, and `None` where they are missing.
"""

from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class AdapterCapabilities:
    name: str
    lora_like: bool = False
    relora: bool = False


class BasePlugin:
    def __init__(self): ...

    def register(self, cfg): ...

    def get_input_args(self): ...

    def get_training_args_mixin(self): ...

    def get_adapter_capabilities(self):
        return []

    def get_lora_config_kwargs(self, cfg):
        return {}

    def load_adapter(self, model, cfg, inference=False, config_only=False): ...

    def pre_model_load(self, cfg): ...

    def post_model_build(self, cfg, model): ...

    def pre_lora_load(self, cfg, model): ...

    def post_lora_load(self, cfg, model): ...

    def post_model_load(self, cfg, model): ...


class DictDefault(dict):
    def __getattr__(self, name):
        return self.get(name)


def modules() -> dict[str, ModuleType]:
    """Stand-ins for the modules that a plugin imports."""
    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin, base.AdapterCapabilities = BasePlugin, AdapterCapabilities
    return {
        "axolotl": ModuleType("axolotl"),
        "axolotl.integrations": ModuleType("axolotl.integrations"),
        "axolotl.integrations.base": base,
    }
