"""What stages spend once per step: traffic of gradients and parameters that shows, and the optimizer."""

import numpy as np

from costmodels.data_parallel import DataParallelTraffic, exposed_traffic_s
from costmodels.plan import FloatArray, IntArray
from costmodels.stage_plan import OFFLOAD_PARTS
from costmodels.stage_prices import CONTENT_COLUMNS, StagePrices


def once_s(
    prices: StagePrices,
    config: IntArray,
    rows: IntArray,
    *,
    num_microbatches: IntArray,
    forward_s: FloatArray,
    backward_s: FloatArray,
    optimizer_offload: IntArray | int = 0,
) -> tuple[FloatArray, FloatArray]:
    """(K,) seconds once per step of stages: of traffic that shows, and of the optimizer after that.

    Args:
        prices: Prices of the configurations.
        config: (K,) configurations.
        rows: (K,) what the stages hold, as ``prices.rows`` has it.
        num_microbatches: (K,) micro-batches per step.
        forward_s: (K,) forward pass of the slowest stage, under which parameters are gathered.
        backward_s: (K,) its backward pass, under which gradients are reduced.
        optimizer_offload: (K,) eighths of the optimizer's states that are on the host.
    """
    content = {name: prices.content[index, rows] for index, name in enumerate(CONTENT_COLUMNS)}
    unit = {name: column[config][:, None] for name, column in prices.unit.items()}
    traffic = DataParallelTraffic(
        gradients_s=content["gradients_s"][:, None],
        parameters_s=content["parameters_s"][:, None],
        reduces_per_microbatch=unit["reduces_per_microbatch"],
        gathers_per_microbatch=unit["gathers_per_microbatch"],
        hidden_gathers=unit["hidden_gathers"],
        hidden_reductions=unit["hidden_reductions"],
    )
    exposed, _ = exposed_traffic_s(
        traffic, num_microbatches=num_microbatches, forward_s=forward_s, backward_s=backward_s
    )
    share = np.asarray(optimizer_offload) / OFFLOAD_PARTS
    return exposed, content["device_step_s"] * (1.0 - share) + content["host_step_s"] * share
