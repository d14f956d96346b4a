"""Whose fused attention runs: the job's word, the stack's, and the devices on which it tells."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelCallBatch, KernelOp
from costmodels.kernels.implementations import Engine, Library, code_of
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.plan import ExecutionPlan, PlanBatch
from tests.fakes import UnitKernels, context, job, stack

ATTENTION = (KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD)


def seen(where: CostContext) -> KernelCallBatch:
    kernels = UnitKernels()
    found = replace(where, kernels=kernels)
    shapes = rank_shapes(PlanBatch.from_plans([ExecutionPlan()]), found, experts=False)[0]
    price_parts([lower_attention(shapes, found)])
    return kernels.seen[0]


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
    calls = seen(where)
    assert calls.implementation[np.isin(calls.op, ATTENTION)].tolist() == [code_of(Engine.PYTORCH, wanted)] * 2


def test_without_a_word_on_blackwell_a_stack_s_library_runs_there_too() -> None:
    where = context(stack=stack(attention_library="flash_2"))
    machine = replace(where.cluster.node, device=replace(where.cluster.node.device, architecture="blackwell"))
    calls = seen(replace(where, cluster=replace(where.cluster, node=machine)))
    found = set(calls.implementation[np.isin(calls.op, ATTENTION)].tolist())
    assert found == {code_of(Engine.PYTORCH, Library.FLASH_2)}
