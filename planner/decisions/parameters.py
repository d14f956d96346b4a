"""What nobody knows exactly about prices: one number per kernel class, kind of link and stack parameter.

A hardware parameter is the common error of the fitted prices of one kind of kernel or link; its standard deviation
is that of the intervals the price lists state. A stack parameter is a fitted field of ``StackSpec``; its standard
deviation is what calibration on a user's own runs starts from (``planner.calibrate_runs``). Both move step times the
same way: through fields of the stack, in logarithms (shares: logits), see ``planner.validate.stack_fit``.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from costmodels.context import CostContext
from costmodels.evaluate import evaluate
from costmodels.kernels.calls import KernelCallBatch, KernelCostModel, KernelOp, Prediction, is_product
from costmodels.links.collectives import CollectiveCallBatch, CollectiveCostModel
from costmodels.plan import BoolArray, PlanBatch
from costmodels.uncertainty import NORMAL_90
from planner.calibrate_runs import FITTED_SHARE
from planner.validate.stack_fit import PRIOR_STD, free_parameters
from profiles.hardware import ClusterSpec, DeviceSpec
from profiles.precision import GEMM_FORMATS

_NARROW = ("fp8", "fp4")
_TIMINGS = "some hundred kernel timings: planner profiles collect, then planner calibrate --device"
_MESSAGES = "collective timings (nccl-tests): planner profiles import"
_RUNS = "trial runs: planner observe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """An uncertain number behind the prices.

    Attributes:
        name: ``kernels.*`` or ``links.*`` for hardware, ``stack.*`` otherwise.
        along: Field of ``StackSpec`` through which it moves step times.
        std: Its standard deviation, of the logarithm (of the logit, for shares).
        measured_by: What would tell it.
    """

    name: str
    along: str
    std: float
    measured_by: str

    @property
    def kind(self) -> str:
        """``hardware`` or ``stack``."""
        return "stack" if self.name.startswith("stack.") else "hardware"


def uncertain_parameters(plans: PlanBatch, context: CostContext) -> tuple[Parameter, ...]:
    """Every uncertain parameter behind the prices of some plans, hardware first.

    Args:
        plans: The plans; the kernels and messages they need weigh by their time.
        context: What they are priced with.
    """
    kernels, links = _KernelProbe(context.kernels), _LinkProbe(context.collectives)
    evaluate(plans, replace(context, kernels=kernels, collectives=links))
    hardware = [
        Parameter(name=name, along=along, std=found.std, measured_by=measured_by)
        for measured_by, widths in ((_TIMINGS, kernels.widths), (_MESSAGES, links.widths))
        for (name, along), found in sorted(widths.items())
        if found.std > 0
    ]
    stack = [
        Parameter(name=f"stack.{name}", along=name, std=FITTED_SHARE * PRIOR_STD[name], measured_by=_RUNS)
        for name in free_parameters(context.stack)
    ]
    return (*hardware, *stack)


@dataclass(slots=True)
class _Width:
    """Running mean of the log standard deviation of prices, weighed by their seconds."""

    seconds_s: float = 0.0
    weighted_s: float = 0.0

    @property
    def std(self) -> float:
        return self.weighted_s / self.seconds_s if self.seconds_s > 0 else 0.0

    def add(self, priced: Prediction, chosen: BoolArray) -> None:
        worked = chosen & (priced.low_s > 0)
        spread = np.log(priced.high_s[worked] / priced.low_s[worked]) / (2 * NORMAL_90)
        self.seconds_s += float(priced.time_s[worked].sum())
        self.weighted_s += float(priced.time_s[worked] @ spread)


@dataclass(slots=True)
class _KernelProbe:
    """Prices kernels as the model it wraps, and keeps how wide their intervals are."""

    base: KernelCostModel
    widths: dict[tuple[str, str], _Width] = field(default_factory=dict)

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        """Seconds for each call on one device."""
        priced = self.base.predict(calls, device)
        product = is_product(calls)
        memory = calls.op == KernelOp.MEMORY
        wide = product.copy()
        for name in _NARROW:
            narrow = product & (calls.gemm_format == GEMM_FORMATS.index(name))
            wide &= ~narrow
            self._add((f"kernels.{name}_gemm", f"{name}_time_scale"), priced, narrow)
        self._add(("kernels.gemm", "gemm_time_scale"), priced, wide)
        self._add(("kernels.attention", "attention_time_scale"), priced, ~product & ~memory)
        self._add(("kernels.memory", "memory_time_scale"), priced, memory)
        return priced

    def _add(self, key: tuple[str, str], priced: Prediction, chosen: BoolArray) -> None:
        self.widths.setdefault(key, _Width()).add(priced, chosen)


@dataclass(slots=True)
class _LinkProbe:
    """Prices collectives as the model it wraps, and keeps how wide their intervals are."""

    base: CollectiveCostModel
    widths: dict[tuple[str, str], _Width] = field(default_factory=dict)

    def predict(self, calls: CollectiveCallBatch, cluster: ClusterSpec) -> Prediction:
        """Seconds for each call."""
        priced = self.base.predict(calls, cluster)
        crosses = calls.group_size > calls.ranks_per_domain
        for key, chosen in (
            (("links.scale_up", "collective_time_scale"), ~crosses),
            (("links.scale_out", "scale_out_time_scale"), crosses),
        ):
            self.widths.setdefault(key, _Width()).add(priced, chosen)
        return priced
