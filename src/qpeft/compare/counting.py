"""Trained numbers of an adapter, counted on a model without numbers by the method's own code in peft."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft import get_peft_model
from pydantic import ValidationError

from qpeft.errors import InputError
from qpeft.training.recipe import AdapterSection


def adapted(model: Any, section: Mapping[str, Any]) -> Any:
    """A copy of a model with an adapter on it.

    Args:
        model: On the meta device (:func:`qpeft.models.empty.empty_model`); stays as it is.
        section: Adapter section of a recipe.

    Raises:
        InputError: The section is not usable, or does not fit the model.
    """
    try:
        read = AdapterSection.model_validate(dict(section))
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    config = read.build()
    config.task_type = "SEQ_CLS" if type(model).__name__.endswith("ForSequenceClassification") else "CAUSAL_LM"
    with _quietly():
        try:
            return get_peft_model(copy.deepcopy(model), config)
        except (ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError, ZeroDivisionError) as error:
            reason = str(error) if isinstance(error, ValueError) else read.explain(error)
            raise InputError(f"the adapter does not fit the model: {reason}") from error


def count_trained(model: Any, section: Mapping[str, Any]) -> int:
    """Numbers that a section's adapter trains on a model, modules trained whole among them.

    Raises:
        InputError: The section is not usable, or does not fit the model.

    Example:
        >>> from qpeft.compare.counting import count_trained
        >>> from qpeft.models.empty import empty_model
        >>> model = empty_model("smollm2-135m-instruct")
        >>> count_trained(model, {"method": "lora", "r": 8, "target_modules": ["q_proj", "v_proj"]})
        460800
    """
    return sum(p.numel() for p in adapted(model, section).parameters() if p.requires_grad)


def share_text(difference: int, of: int) -> str:
    """The size of a difference in percent.

    Example:
        >>> from qpeft.compare.counting import share_text
        >>> share_text(-48, 70_320), share_text(9856, 6528)
        ('0.068 %', '151 %')
    """
    share = 100 * abs(difference) / of
    return f"{share:.2g} %" if share < 10 else f"{share:.0f} %"


@contextmanager
def _quietly() -> Iterator[None]:
    """Sizes that are only tried would warn of what nobody asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
