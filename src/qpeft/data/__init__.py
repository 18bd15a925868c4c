"""Data sets: local files, hub names and the generated arithmetic problems, as conversations and as token ids."""

from qpeft.data.arithmetic import Problem, generate, generate_examples
from qpeft.data.examples import Example, question_and_answer
from qpeft.data.files import load, split_examples
from qpeft.data.formatting import render
from qpeft.data.masking import EncodingReport, encode, encode_dataset

__all__ = [
    "EncodingReport",
    "Example",
    "Problem",
    "encode",
    "encode_dataset",
    "generate",
    "generate_examples",
    "load",
    "question_and_answer",
    "render",
    "split_examples",
]
