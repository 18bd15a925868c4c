"""What a method sees of LLaMA-Factory's new trainers, written down from version 0.9.5: the table of methods, no more.

Source: `src/llamafactory/v1/utils/plugin.py` and `v1/plugins/model_plugins/peft.py` of hiyouga/LLaMA-Factory, in the
package 0.9.5 and at commit ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30. A method is called as
`PeftPlugin(name)(model, peft_config, is_train)`, in the newer version with the last two by name.
"""

from types import ModuleType
from typing import ClassVar


class PeftPlugin:
    methods: ClassVar = {}

    def __init__(self, name):
        self.name = name

    def register(self):
        def keep(function):
            self.methods[self.name] = function
            return function

        return keep

    def __call__(self, *args, **kwargs):
        return self.methods[self.name](*args, **kwargs)


def modules() -> dict[str, ModuleType]:
    """Stand-ins for the modules that the method and its launcher import."""
    names = ["llamafactory", "llamafactory.v1", "llamafactory.v1.plugins", "llamafactory.v1.plugins.model_plugins"]
    names += ["llamafactory.v1.plugins.model_plugins.peft", "llamafactory.v1.trainers"]
    names += ["llamafactory.v1.trainers.sft_trainer"]
    made = {name: ModuleType(name) for name in names}
    made["llamafactory.v1.plugins.model_plugins.peft"].PeftPlugin = PeftPlugin
    return made
