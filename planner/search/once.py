"""What stages spend once per step: traffic of gradients and parameters that shows, and the optimizer."""

from dataclasses import dataclass

import numpy as np

from costmodels.data_parallel import exposed_traffic_s
from costmodels.plan import FloatArray, IntArray
from costmodels.stage_plans.once import stage_step_parts, stage_traffic
from costmodels.stage_plans.plan import OFFLOAD_PARTS
from costmodels.stage_plans.prices import CONTENT_COLUMNS, StagePrices


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """Prices of stages that are alone: columns (K, 1) by name."""

    prices: StagePrices
    config: IntArray
    rows: IntArray

    def __getitem__(self, name: str) -> FloatArray:
        """The column of that name."""
        content = name in CONTENT_COLUMNS
        found: FloatArray = (
            self.prices.content[CONTENT_COLUMNS.index(name), self.rows]
            if content
            else self.prices.unit[name][self.config]
        )
        return found[:, None]


def once_s(
    prices: StagePrices,
    config: IntArray,
    rows: IntArray,
    *,
    num_microbatches: IntArray,
    num_stages: IntArray,
    virtual_stages: IntArray,
    forward_s: FloatArray,
    backward_s: FloatArray,
    optimizer_offload: IntArray | int = 0,
    parameter_offload: IntArray | int = 0,
) -> tuple[FloatArray, FloatArray]:
    """(K,) seconds once per step of stages: of traffic that shows, and of the optimizer after that.

    Args:
        prices: Prices of the configurations.
        config: (K,) configurations.
        rows: (K,) what the stages hold, as ``prices.rows`` has it.
        num_microbatches: (K,) micro-batches per step.
        num_stages: (K,) stages of the pipeline.
        virtual_stages: (K,) chunks per stage.
        forward_s: (K,) forward pass of the slowest stage, under which parameters are gathered.
        backward_s: (K,) its backward pass, under which gradients are reduced.
        optimizer_offload: (K,) eighths of the optimizer's states that are on the host.
        parameter_offload: (K,) eighths of the weights that are.
    """
    looked = _Looked(prices=prices, config=config, rows=rows)
    optimizer, parameters = (
        np.broadcast_to(np.asarray(share) / OFFLOAD_PARTS, rows.shape)[:, None]
        for share in (optimizer_offload, parameter_offload)
    )
    traffic = stage_traffic(
        looked,
        weights_s=looked["weights_bytes"] * parameters / looked["host_bytes_per_s"],
        optimizer_on_host=optimizer,
        num_microbatches=np.broadcast_to(num_microbatches, rows.shape)[:, None],
    )
    exposed, _ = exposed_traffic_s(
        traffic,
        num_microbatches=num_microbatches,
        num_stages=num_stages,
        virtual_stages=virtual_stages,
        forward_s=forward_s,
        backward_s=backward_s,
    )
    update_s = stage_step_parts(looked).step_s(optimizer_on_host=optimizer, parameters_on_host=parameters)
    return exposed, update_s[:, 0]
