"""What a field of a question is called elsewhere: by the command line, in an answer, by an engine."""

from collections.abc import Container, Mapping
from types import MappingProxyType

# Options of the command line that are no field's name with hyphens, to the field.
OPTION_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "gpus": "cluster",
        "seq": "sequence_length",
        "global_batch": "global_batch_size",
        "tokens": "train_tokens",
        "micro_batches": "num_microbatches",
        "fused_loss": "fused_cross_entropy",
        "linear_loss": "linear_cross_entropy",
        "rate": "rate_per_s",
        "ttft": "ttft_s",
        "tpot": "tpot_s",
        "request_latency": "latency_s",
        "price_per_gpu_hour": "price_per_device_hour_usd",
    }
)
OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        **OPTION_FIELDS,
        "batch_tokens": "global_batch_tokens",
        "prompt_tokens": "prompt",
        "input_tokens": "prompt",
        "output_tokens": "generate",
        "max_tokens": "generate",
        "generated_tokens": "generate",
        "cached_tokens": "prefix",
    }
)


def meant_setting(name: str, known: Container[str], job: Container[str], *, fixed: str) -> str:
    """A keyword that a call may have been meant to get where one is unknown to it; empty when nothing is close.

    Args:
        name: The keyword.
        known: Keywords of the call besides those here.
        job: Fields of a job.
        fixed: The call's keyword of what is held fixed, ``plan`` or ``pins``.
    """
    # Both load NumPy, which the command line's help does without.
    from costmodels.plan import PLAN_COLUMNS
    from planner.question.pins import ALIASES

    if name in ("plan", "pins", "pin"):
        return f"give what is fixed as {fixed}={{'tp': 8}}"
    field = OTHER_NAMES.get(name, name)
    if field in known or field == "cluster":
        return f"did you mean '{field}'?"
    if (column := ALIASES.get(field, field)) in PLAN_COLUMNS:
        return f"a field of {fixed}: {fixed}={{'{name if name in ALIASES else column}': ...}}"
    return f"a field of job: job={{'{field}': ...}}" if field in job else ""


def meant_field(name: str, known: Container[str]) -> str:
    """The field of a mapping that an unknown one is another name of; empty when there is none.

    Args:
        name: The unknown one.
        known: Fields there.
    """
    field = OTHER_NAMES.get(name, "")
    return f"did you mean '{field}'?" if field in known else ""
