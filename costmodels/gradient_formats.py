"""Bytes per element in which gradients are kept and reduced."""

from costmodels.workload import TrainingJob
from profiles.precision import ELEMENT_BYTES
from profiles.stack import StackSpec


def gradient_element_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per gradient element as accumulated and reduced; under autocast in the format of the weights."""
    default = stack.gradient_format(job.precision)
    if stack.autocast_weights and job.master_dtype != "none":
        default = job.master_dtype
    return float(ELEMENT_BYTES[job.gradient_dtype or default])


def reduced_element_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per gradient element as reduced, which is as accumulated unless the stack says otherwise."""
    return float(ELEMENT_BYTES[stack.reduce_dtype]) if stack.reduce_dtype else gradient_element_bytes(job, stack)
