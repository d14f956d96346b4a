"""All-reduces that generation engines bring themselves: one kernel that reads what the other ranks wrote.

Up to 8 MB and over two to eight devices that all reach each other, vLLM, SGLang and TensorRT-LLM use no NCCL. Each rank
reads S from the n - 1 others and adds up (one shot), or adds up its n-th of S and reads the other sums (two shots):

    one shot   launch + n rank + (n - 1) S / (e B)
    two shots  launch + n rank + sync + 2 (n - 1) / n S / (e B)

The faster is taken; of two ranks, which have nothing to share out, one shot. On an H100 8 KB over eight ranks take 3.5
to 5.1 us in a graph, where NCCL takes 16.

Source:
    vllm-project/vllm, distributed/device_communicators/custom_all_reduce.py (``max_size`` of 8 MB, world sizes 2, 4, 6
    and 8, NVLink between all); sgl-project/sglang, the same file; NVIDIA/TensorRT-LLM, allReduceKernels.h. Fitted on
    aiconfigurator's timings of all three (``costmodels.calibration.engine_reduce_fit``).
"""

import numpy as np

from costmodels.kernels.calls import Basis, FloatArray, Prediction
from costmodels.kernels.implementations import Engine
from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp
from profiles.engine_reduce import EngineReduce, engine_reduce
from profiles.hardware import LinkSpec

MOST_BYTES = 8.0 * 2**20
RANKS = (2, 4, 6, 8)
_NAMES = {Engine.VLLM: "vllm", Engine.SGLANG: "sglang", Engine.TENSORRT_LLM: "tensorrt-llm"}


def reduce_time_s(
    size_bytes: FloatArray, ranks: FloatArray, constants: EngineReduce, bytes_per_s: FloatArray | float
) -> FloatArray:
    """(K,) seconds of all-reduces.

    Args:
        size_bytes: (K,) of the message.
        ranks: (K,) that take part.
        constants: Of the engine on the link.
        bytes_per_s: Of the link, per device and direction.
    """
    base_s = constants.launch_s + constants.rank_s * ranks
    all_s = size_bytes / (constants.efficiency * bytes_per_s)
    one_s = base_s + (ranks - 1) * all_s
    two_s = base_s + constants.sync_s + 2 * (ranks - 1) / ranks * all_s
    return np.asarray(np.where(ranks > 2, np.minimum(one_s, two_s), one_s), dtype=np.float64)


def with_engine_reduces(priced: Prediction, calls: CollectiveCallBatch, engine: Engine, link: LinkSpec) -> Prediction:
    """Prices, those of all-reduces that an engine does itself replaced.

    Args:
        priced: By NCCL.
        calls: What is priced.
        engine: Who runs them.
        link: Between devices of one domain.
    """
    constants = engine_reduce(link.name, _NAMES.get(engine, ""))
    inside = (calls.ranks_per_domain == calls.group_size) & np.isin(calls.group_size, RANKS)
    rows = np.flatnonzero(inside & (calls.op == int(CollectiveOp.ALL_REDUCE)) & (calls.size_bytes <= MOST_BYTES))
    rows = rows[calls.size_bytes[rows] > 0]
    if constants is None or not len(rows):
        return priced
    ranks = calls.group_size[rows].astype(np.float64)
    found = priced.table()
    found[0, rows] = reduce_time_s(calls.size_bytes[rows], ranks, constants, link.bandwidth_bytes_per_s)
    found[1, rows] = found[0, rows] * constants.low_factor
    found[2, rows] = found[0, rows] * constants.high_factor
    found[3, rows], found[4, rows] = int(Basis.ANALYTIC), 0.0
    return Prediction.of(found)
