"""What stages spend once per step, from their looked-up prices: traffic between ranks, and the optimizer."""

from typing import Protocol

from costmodels.data_parallel import DataParallelTraffic
from costmodels.optimizer import StepParts, host_sums_s
from costmodels.parameter_offload import WeightWays
from costmodels.plan import FloatArray, IntArray


class Prices(Protocol):
    """Columns of ``StagePrices`` by name, all of one shape."""

    def __getitem__(self, name: str, /) -> FloatArray:
        """The column of that name."""


def stage_traffic(
    prices: Prices, *, weights_s: FloatArray | None, optimizer_on_host: FloatArray | None, num_microbatches: IntArray
) -> DataParallelTraffic:
    """Traffic of data parallelism on stages.

    Args:
        prices: Their prices.
        weights_s: Seconds in which offloaded weights cross the host link; None for none. Shards that are gathered
            once per step come from there first.
        optimizer_on_host: Share of the optimizer that is offloaded; None for none. Sums of gradients may be there, too.
        num_microbatches: Of a step.
    """
    parameters_s, gradients_s = prices["parameters_s"], prices["gradients_s"]
    if weights_s is not None:
        parameters_s = parameters_s + weights_s * prices["gathers_once"]
    if optimizer_on_host is not None:
        ways_s = host_sums_s(prices["updated_way_s"], prices["host_sums_from"], num_microbatches)
        gradients_s = gradients_s + ways_s * optimizer_on_host
    return DataParallelTraffic(
        gradients_s=gradients_s,
        parameters_s=parameters_s,
        reduces_per_microbatch=prices["reduces_per_microbatch"],
        gathers_per_microbatch=prices["gathers_per_microbatch"],
        hidden_gathers=prices["hidden_gathers"],
        hidden_reductions=prices["hidden_reductions"],
        replicas_s=prices["replicas_s"],
        shared_s=prices["shared_s"],
    )


def stage_step_parts(prices: Prices) -> StepParts:
    """The optimizer step of stages, on the device and on the host."""
    return StepParts(
        device_step_s=prices["device_step_s"],
        host_step_s=prices["host_step_s"],
        ways=WeightWays(updated_s=prices["updated_way_s"], held_s=prices["held_way_s"]),
    )
