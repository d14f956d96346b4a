"""Every call that plans are lowered to has a text, and the text says all of it."""

import numpy as np
import pytest

from costmodels.evaluate import evaluate
from costmodels.kernels.calls import COLUMNS, KernelFamily, KernelOp, take
from costmodels.kernels.mlir.emit import emit, kernel_of
from costmodels.kernels.mlir.parse import calls_of, parse
from costmodels.plan import PlanBatch
from profiles.hardware import ClusterSpec
from tests.fakes import UnitCollectives, UnitKernels, context, device, gpt, job, latent, llama, mixture, node, stack

PLANS = PlanBatch.from_columns(3, tensor_parallel=[1, 2, 2], context_parallel=[1, 1, 2], expert_parallel=[1, 1, 1])
# A device that multiplies in every format of the cases: nothing runs in fp8 on one that does not.
CAPABLE = device(peak_flops_per_s={"fp8": 624e12, "fp16": 312e12, "bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12})
CLUSTER = ClusterSpec(name="fake", node=node(device=CAPABLE), num_nodes=8)
CASES = {
    "gpt": {"model": gpt(), "job": job(attention="unfused", dropout=True)},
    "llama": {
        "model": llama(),
        "job": job(precision="fp16"),
        "stack": stack(norm="module", rotary="eager", activation="eager", loss="eager"),
    },
    "llama in fp8": {"model": llama(), "job": job(precision="fp8")},
    "mixture": {"model": mixture(), "job": job(precision="tf32")},
    "latent": {"model": latent()},
}


@pytest.mark.parametrize("name", CASES)
def test_a_lowered_call_is_read_back_from_its_text(name):
    kernels = UnitKernels()
    where = context(**CASES[name] | {"cluster": CLUSTER, "kernels": kernels, "collectives": UnitCollectives()})
    evaluate(PLANS, where)
    families = set()
    for batch in kernels.seen:
        calls = take(batch, np.flatnonzero(batch.flops + batch.bytes > 0))
        families |= set(calls.family[calls.op == KernelOp.MEMORY].tolist())
        for row in range(len(calls)):
            again = calls_of(parse(emit(kernel_of(calls, row))))
            for column in COLUMNS:
                wanted = getattr(calls, column)[row]
                if column == "flops" and calls.op[row] == KernelOp.ATTENTION_BACKWARD and name == "latent":
                    continue  # the text counts the five products by their own widths
                np.testing.assert_allclose(getattr(again, column), [wanted], rtol=1e-12, err_msg=f"{row} {column}")
    assert {KernelFamily.NORM, KernelFamily.OPTIMIZER, KernelFamily.EMBEDDING} <= families
