"""Low-rank adapters beside linear layers."""

from costmodels.autocast import fp32_stream
from costmodels.kernels.calls import KernelFamily
from costmodels.lowering.calls import CallList, Phase
from costmodels.lowering.elementwise import ADAPTERS
from costmodels.lowering.formats import core_format
from costmodels.plan import FloatArray


def lora_pair(
    calls: CallList,
    tokens: FloatArray,
    inputs: FloatArray | float,
    outputs: FloatArray | float,
    *,
    rank: int,
    element: float,
    batch: FloatArray | None = None,
) -> None:
    """The two thin GEMMs of an adapter, and what is done with its inputs and outputs (``elementwise.ADAPTERS``).

    ``batch`` experts of ``tokens`` each run theirs as grouped GEMMs. Recipes with 8- and 4-bit products keep adapters
    in 16 bits (NeMo's are Megatron's linear layers, not Transformer Engine's: nlp/modules/common/megatron/adapters).
    """
    count: FloatArray | float = 1.0 if batch is None else batch
    for widths in ((inputs, float(rank)), (float(rank), outputs)):
        calls.linear(
            tokens,
            *widths,
            trained=True,
            batch=count,
            grouped=batch is not None,
            gemm_format=core_format(calls.context),
        )
    job, stack = calls.context.job, calls.context.stack
    beside = ADAPTERS["upcast" if fp32_stream(job, stack) else stack.adapters]
    for phase, (of_inputs, of_outputs, kernels) in zip((Phase.FORWARD, Phase.INPUT_GRADIENT), beside, strict=True):
        calls.memory(
            phase,
            element * count * tokens * (of_inputs * inputs + of_outputs * outputs),
            family=KernelFamily.POINTWISE,
            rows=count * tokens,
            width=outputs,
            kernels=kernels,
        )
