"""Checks the schema strings of csrc/ops.cpp. A bad one aborts the process when gatedops is imported, without a Python
error; here the fault has a name."""

from __future__ import annotations

import pytest
import torch
from schemas import CSRC, SCHEMAS, calls

from gatedops.backends import cuda_library


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.split("(")[0])
def test_a_schema_parses_and_is_registered_as_written(schema):
    parsed = torch._C.parse_schema(f"gatedops::{schema}")
    registered = getattr(torch.ops.gatedops, parsed.name.split("::")[1]).default._schema
    assert registered == parsed


def test_every_schema_string_is_found():
    assert len(SCHEMAS) == (CSRC / "ops.cpp").read_text().count("m.def(") > 0


def test_an_op_that_writes_into_an_argument_returns_nothing():
    for schema in map(torch._C.parse_schema, SCHEMAS):
        mutable = any(argument.alias_info and argument.alias_info.is_write for argument in schema.arguments)
        assert mutable == schema.name.endswith("_out")
        assert mutable == (not schema.returns)


def test_every_kernel_belongs_to_a_schema():
    """torch silently accepts m.impl() of a name that has no schema."""
    defined = {schema.split("(")[0] for schema in SCHEMAS}
    kernels = [name for file in sorted(CSRC.rglob("*.cpp")) for name in calls(file.read_text(), "impl")]
    assert set(kernels) == defined


def test_the_ops_with_kernels_in_cuda_are_those_that_its_library_registers():
    """The list is needed when the library cannot be loaded and torch's dispatcher cannot be asked."""
    registered = [name for file in sorted(CSRC.glob("*/cuda/*.cpp")) for name in calls(file.read_text(), "impl")]
    assert sorted(registered) == sorted(cuda_library.OPS)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.split("(")[0])
def test_every_op_has_a_cpu_kernel(schema):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gatedops::{schema.split('(')[0]}", "CPU")
