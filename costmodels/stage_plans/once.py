"""What stages spend once per step, from their looked-up prices: traffic between ranks, and the optimizer."""

from typing import Protocol

from costmodels.data_parallel import DataParallelTraffic
from costmodels.host_sums import with_host_sums
from costmodels.optimizer import StepParts
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
    parameters_s = prices["parameters_s"]
    if weights_s is not None:
        parameters_s = parameters_s + weights_s * prices["gathers_once"]
    traffic = DataParallelTraffic(
        gradients_s=prices["gradients_s"],
        parameters_s=parameters_s,
        reduces_per_microbatch=prices["reduces_per_microbatch"],
        gathers_per_microbatch=prices["gathers_per_microbatch"],
        hidden_gathers=prices["hidden_gathers"],
        hidden_reductions=prices["hidden_reductions"],
        replicas_s=prices["replicas_s"],
        shared_s=prices["shared_s"],
    )
    if optimizer_on_host is None:
        return traffic
    return with_host_sums(
        traffic,
        prices["host_sum_s"],
        spared=prices["spared_sums"],
        stalls=prices["sums_stall"],
        optimizer_on_host=optimizer_on_host,
        num_microbatches=num_microbatches,
    )


def stage_step_parts(prices: Prices) -> StepParts:
    """The optimizer step of stages, on the device and on the host."""
    return StepParts(
        device_step_s=prices["device_step_s"],
        host_step_s=prices["host_step_s"],
        ways=WeightWays(updated_s=prices["updated_way_s"], held_s=prices["held_way_s"]),
    )
