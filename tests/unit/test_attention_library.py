"""Whose fused attention runs: a job may say so where the library makes a difference."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.kernels.implementations import Engine, Library, code_of
from costmodels.plan import ExecutionPlan
from tests.fakes import context, job, stack
from tests.unit.test_lowering import ATTENTION, seen


@pytest.mark.parametrize(
    ("architecture", "named", "wanted"),
    [
        ("hopper", "", Library.FLASH_2),
        ("hopper", "cudnn", Library.CUDNN),
        ("hopper", "flash_3", Library.CUDNN),
        ("ampere", "cudnn", Library.FLASH_2),
        ("blackwell", "", Library.CUDNN),
        ("blackwell", "flash_2", Library.FLASH_2),
        ("blackwell-rtx", "cudnn", Library.FLASH_2),
    ],
)
def test_a_job_names_the_library_of_its_attention_where_that_tells(
    architecture: str, named: str, wanted: Library
) -> None:
    usual = stack(attention_library="flash_2", blackwell_attention_library="cudnn")
    where = context(job=job(attention_library=named), stack=usual)
    machine = replace(where.cluster.node, device=replace(where.cluster.node.device, architecture=architecture))
    where = replace(where, cluster=replace(where.cluster, node=machine))
    calls = seen("attention", ExecutionPlan(), where)
    assert calls.implementation[np.isin(calls.op, ATTENTION)].tolist() == [code_of(Engine.PYTORCH, wanted)] * 2


def test_without_a_word_on_blackwell_a_stack_s_library_runs_there_too() -> None:
    where = context(stack=stack(attention_library="flash_2"))
    machine = replace(where.cluster.node, device=replace(where.cluster.node.device, architecture="blackwell"))
    calls = seen("attention", ExecutionPlan(), replace(where, cluster=replace(where.cluster, node=machine)))
    found = set(calls.implementation[np.isin(calls.op, ATTENTION)].tolist())
    assert found == {code_of(Engine.PYTORCH, Library.FLASH_2)}
