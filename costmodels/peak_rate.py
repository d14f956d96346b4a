"""Where the interval of a time ends: no device works faster than its peak rate.

One definition for steps, forward passes and pipelines whose stages have devices of their own.
"""

from collections.abc import Sequence

import numpy as np

from costmodels.arrays import total
from costmodels.context import CostContext
from costmodels.experts_run import as_run
from costmodels.flops import hardware_flops_per_step, model_flops_per_step
from costmodels.plan import FloatArray, Recompute
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch
from profiles.model import ModelSpec


def time_interval_s(
    time_s: FloatArray, half_widths: FloatArray, at_peak_s: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """(N,) both ends of the 90 % interval of times.

    Args:
        time_s: (N,) seconds expected.
        half_widths: (2, N) low and high half of the interval of their logarithm.
        at_peak_s: (N,) seconds that the same FLOPs take at the peak rate: the lower end is not below them, unless the
            time expected is.
    """
    low_s = np.maximum(time_s * np.exp(-half_widths[0]), np.minimum(at_peak_s, time_s))
    return low_s, time_s * np.exp(half_widths[1])


def peak_flops_per_s(context: CostContext) -> float:
    """Of one device, in the format of the job's matrix products."""
    return context.cluster.device.peak(context.job.numerics.gemm_format)


def stages_at_peak_s(plans: StagePlanBatch, configs: StageConfigs, contexts: Sequence[CostContext]) -> FloatArray:
    """(N,) seconds of a step's FLOPs with every device of every stage at its peak rate from beginning to end.

    Args:
        plans: N plans whose stages may differ.
        configs: The configurations they refer to.
        contexts: One per device group: same model and job.
    """
    per_config = configs.num_devices * np.array([peak_flops_per_s(context) for context in contexts])[configs.group]
    rate = total((per_config[plans.config] * plans.used).T)
    model = as_run(contexts[0].model, contexts[0].stack)
    flops = model_flops_per_step(model, contexts[0].job, causal=True) + _repeated_flops(plans, model, contexts[0])
    return np.asarray(flops / rate)


def _repeated_flops(plans: StagePlanBatch, model: ModelSpec, context: CostContext) -> FloatArray:
    """(N,) FLOPs of a step that recomputation repeats; modules are those of an average layer."""
    shares = {
        Recompute.SELECTIVE: (plans.selective_dense + plans.selective_moe) / model.num_layers,
        Recompute.FULL: (plans.full_dense + plans.full_moe) / model.num_layers,
    }
    job = context.job
    needed = model_flops_per_step(model, job, causal=True)
    repeated = np.zeros(len(plans))
    for kind, share in shares.items():
        everywhere = hardware_flops_per_step(
            model,
            job,
            context.stack,
            recompute=np.full(share.size, kind),
            recompute_modules=plans.modules.ravel(),
            recomputed_layer_share=np.ones(share.size),
        )
        repeated = repeated + total((share * (everywhere.reshape(share.shape) - needed)).T)
    return repeated
