"""Formats in which gradients are kept and reduced, and their bytes per element."""

from costmodels.workload import TrainingJob
from profiles.precision import ELEMENT_BYTES
from profiles.stack import StackSpec


def gradient_format(job: TrainingJob, stack: StackSpec) -> str:
    """Format that gradients are accumulated in; under autocast that of the weights, unless the job says one."""
    default = stack.gradient_format(job.precision)
    if stack.autocast_weights and job.master_dtype != "none":
        default = job.master_dtype
    return job.gradient_dtype or default


def gradient_element_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per gradient element as accumulated, and as reduced unless the stack says otherwise."""
    return float(ELEMENT_BYTES[gradient_format(job, stack)])


def reduced_element_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per gradient element as reduced, which is as accumulated unless the stack says otherwise."""
    return float(ELEMENT_BYTES[stack.reduce_dtype]) if stack.reduce_dtype else gradient_element_bytes(job, stack)
