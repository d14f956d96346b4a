"""What learned kernel models see of a call: numbers per call and device, mostly dimensionless.

One function per operation class gives named columns; ``FEATURES`` lists them. A new class is a module with such
a function and an entry there. Sizes enter as ratios to what the device offers (waves over its multiprocessors,
bytes over its cache, arithmetic over memory time), so that a device that was never measured differs from known
ones in the same numbers as a shape does.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.attention_terms import attention_features, forward_features
from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelOp
from costmodels.kernels.device_features import DeviceFormat, device_format
from costmodels.kernels.expert_terms import expert_features
from costmodels.kernels.features_gemm import gemm_features
from costmodels.kernels.implementations import Engine, engine_of
from costmodels.kernels.memory_terms import memory_features
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS

FeatureFunction = Callable[[KernelCallBatch, DeviceFormat], Mapping[str, FloatArray]]

FEATURES: Mapping[str, FeatureFunction] = {
    "gemm": gemm_features,
    "gemm_fp32": gemm_features,
    "grouped_gemm": gemm_features,
    "grouped_alone": gemm_features,
    "attention_forward": forward_features,
    "attention_backward": attention_features,
    "attention_decode": attention_features,
    "fused_experts": expert_features,
    "memory": memory_features,
}
_OP_CLASS: Mapping[KernelOp, str] = {
    KernelOp.GEMM: "gemm",
    KernelOp.GROUPED_GEMM: "grouped_gemm",
    KernelOp.ATTENTION_FORWARD: "attention_forward",
    KernelOp.ATTENTION_BACKWARD: "attention_backward",
    KernelOp.ATTENTION_DECODE: "attention_decode",
    KernelOp.MEMORY: "memory",
    KernelOp.FUSED_EXPERTS: "fused_experts",
    KernelOp.LINEAR_ATTENTION: "linear_attention",
    KernelOp.INDEX_SCORES: "index_scores",
    KernelOp.CHOSEN_FORWARD: "chosen_keys",
    KernelOp.CHOSEN_BACKWARD: "chosen_keys",
    KernelOp.CHOSEN_DECODE: "chosen_keys",
}
_BY_CODE = np.array([_OP_CLASS[op] for op in KernelOp], dtype="<U24")


def op_classes(calls: KernelCallBatch) -> NDArray[np.str_]:
    """(C,) operation class of each call; classes without an entry in ``FEATURES`` are priced by formula.

    GEMMs in fp32 run on other units, in other kernels, and were timed on other cards: a class of their own. So are
    grouped products that were timed alone, as PyTorch runs them, rather than as what a fused expert layer leaves for
    them.
    """
    found = _BY_CODE[calls.op]
    found[(calls.op == KernelOp.GROUPED_GEMM) & (engine_of(calls.implementation) == Engine.PYTORCH)] = "grouped_alone"
    found[(calls.op == KernelOp.GEMM) & (calls.gemm_format == GEMM_FORMATS.index("fp32"))] = "gemm_fp32"
    return found


def features_of(op_class: str, calls: KernelCallBatch, device: DeviceSpec) -> Mapping[str, FloatArray]:
    """Named columns of length C for calls of one operation class, in a fixed order, in single precision.

    Logarithms differ in their last bits between processors, and trees split between values as near as that: prices of
    mixtures on one kind of machine were up to 8 % from those on another.

    Raises:
        SpecError: If the device cannot multiply in a format that a call asks for.
        KeyError: If the class has no features.
    """
    found = FEATURES[op_class](calls, device_format(calls, device))
    single = {name: np.asarray(values, dtype=np.float32).astype(np.float64) for name, values in found.items()}
    return {name: np.broadcast_to(values, len(calls)) for name, values in single.items()}
