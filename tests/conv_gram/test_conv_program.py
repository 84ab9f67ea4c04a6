"""C++ and Python encode the instructions of conv_gram programs alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gatedops.ops.conv_program import FIELDS, Instruction, Op, decode, encode

HEADER = (Path(__file__).resolve().parents[2] / "csrc" / "conv_gram" / "program.h").read_text()


def enumerators(name: str) -> list[str]:
    """Returns the names in an enum of program.h, whose values count from 0."""
    (found,) = re.findall(rf"enum class {name} \{{([\w\s,]*)\}}", HEADER)
    return [enumerator.strip() for enumerator in found.split(",")]


def test_an_instruction_has_the_same_fields_in_cpp_and_python():
    assert enumerators("Field") == [*Instruction._fields, "count"]


def test_operations_have_the_same_numbers_in_cpp_and_python():
    assert enumerators("ConvOp") == [op.name.lower() for op in Op]
    assert list(Op) == list(range(len(Op)))


@pytest.mark.parametrize("field", range(FIELDS), ids=Instruction._fields)
def test_programs_survive_encoding(field):
    program = [Instruction(*range(FIELDS)), Instruction(Op.BOX, 1)._replace(**{Instruction._fields[field]: 9})]
    assert decode(encode(program)) == program
    assert encode(program)[FIELDS + field] == 9
