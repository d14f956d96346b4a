"""Plans priced on variants of a stack that only differ in how fast things go.

What such variants share is worked out once: stages, memory, and the calls of every block with what price lists say.
"""

from dataclasses import dataclass, replace

from costmodels.context import CostContext
from costmodels.evaluate import Peaks, peaks
from costmodels.plan import FloatArray, PlanBatch
from costmodels.stages.parameters import StageParameters, stage_parameters
from costmodels.stages.table import StageTable, stage_table
from costmodels.step.layer_costs import LayerCosts, LoweredLayers
from costmodels.step.step_time import step_time_s
from profiles.stack import TIME_SCALES, StackSpec

# Fields of a stack that change no kernel, no message and no byte, only how long they take or what hides them.
SPEEDS = (
    *TIME_SCALES,
    "scale_out_group_bytes_per_s",
    "kernel_launch_s",
    "collective_launch_s",
    "expert_layer_s",
    "expert_issue_s",
    "microbatch_overhead_s",
    "step_overhead_s",
    "straggler_fraction_per_doubling",
    "tensor_parallel_overlap",
    "data_parallel_overlap",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackVariants:
    """N plans on one context, ready to be priced on variants of its stack.

    Attributes:
        plans: The plans.
        context: What they are priced with.
        stages, parameters, needs, lowered: What all variants share.
    """

    plans: PlanBatch
    context: CostContext
    stages: StageTable
    parameters: StageParameters
    needs: Peaks
    lowered: LoweredLayers

    @classmethod
    def of(cls, plans: PlanBatch, context: CostContext) -> "StackVariants":
        """Work out what variants share."""
        stages = stage_table(plans, context.model, stack=context.stack)
        return cls(
            plans=plans,
            context=context,
            stages=stages,
            parameters=stage_parameters(plans, stages, context.model, context.job),
            needs=peaks(plans, context),
            lowered=LoweredLayers.of(plans, context),
        )

    @property
    def costs(self) -> LayerCosts:
        """The blocks of the plans on the stack as it is."""
        return self.lowered.costs(self.context)

    def step_time_s(self, stack: StackSpec) -> FloatArray:
        """(N,) what ``outcomes`` says of the steps on a variant of the stack.

        Raises:
            ValueError: If it is more than a variant: it differs in other fields than ``SPEEDS``.
        """
        if replace(stack, **{name: getattr(self.context.stack, name) for name in SPEEDS}) != self.context.stack:
            raise ValueError("stacks differ in more than their speed")
        context = replace(self.context, stack=stack)
        costs = self.lowered.costs(context)
        paged_bytes = self.needs.paged_bytes
        return step_time_s(self.plans, self.stages, costs, self.parameters, context, paged_bytes=paged_bytes)
