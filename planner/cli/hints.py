"""Hints as the command line has them: what the library calls ``framework fsdp`` is ``--framework fsdp`` there."""

import re

from planner.question.field_names import OPTION_FIELDS
from profiles.errors import SpecError

# Options that are called as the library's fields are, but for hyphens.
_SAME = (
    *("allow_partial", "first_stage_layers", "last_stage_layers", "sample_tokens", "attention_library", "lora_rank"),
    *("lora_targets", "optimizer_in_backward", "gradient_dtype", "master_dtype", "state_dtype", "frozen_dtype"),
    *("context_kind", "axis_order", "draft_tokens", "tree_tokens", "max_model_len", "max_num_batched_tokens"),
    *("max_num_seqs", "price_date", "speculate", "percentile", "oom_penalty"),
)
# Dimensions of a plan that have short names on the command line.
_DEGREES = {
    "tensor_parallel": "tp",
    "pipeline_parallel": "pp",
    "data_parallel": "dp",
    "context_parallel": "cp",
    "expert_parallel": "ep",
    "expert_tensor_parallel": "etp",
    "virtual_stages": "vpp",
    "zero_stage": "zero",
    "zero_shard_degree": "hsdp",
    "micro_batch_size": "micro-batch",
}
# A cluster is a word of any text.
_OTHERS = {field: "--" + name.replace("_", "-") for name, field in OPTION_FIELDS.items() if field != "cluster"}
_SHORT = {field: f"--{name}" for field, name in _DEGREES.items()}
_FIELDS = {name: "--" + name.replace("_", "-") for name in _SAME} | _OTHERS | {"memory_reserve_bytes": "--reserve-gib"}
# Options whose names are words of any text, with the values after which they are no such word.
_VALUES = {
    r"tp|pp|dp|cp|ep|etp|vpp|zero|hsdp|replicas|generate|staleness|micro-batch": r"\d",
    "framework": r"(?:megatron|deepspeed|fsdp|nanotron|hugging|hf|alpa|paxml|pytorch)",
    "format": r"(?:megatron|deepspeed|torchtitan|accelerate|nanotron|verl|nemo|openrlhf)",
    "task": r"(?:pretrain|full|lora|qlora)\b",
    "precision": r"(?:fp|tf|bf|mxfp|nvfp)\d",
    "optimizer": r"(?:adamw|adafactor|sgd)",
    "attention": r"(?:flash|unfused)\b",
    "recompute": r"(?:none|selective|full|block)\b",
    "mode": r"(?:hybrid|colocated|disaggregated|async)\b",
    "engine": r"(?:vllm|sglang|tensorrt)",
    "accepted": r"\d",
    "pin": r"\w+\.\w",
}
_CALLED_SO = ("unknown setting", "unknown field")  # hints name settings and fields of files, which are called so
_BARE = re.compile(r"\d[\d.e+]*\b")  # a hint that begins with a number
_PLAIN = ("top", "seed", "evaluations", "seconds", "staleness", "effort", "batch", "replicas")
_SAME_WORD = {name: f"--{name}" for name in _PLAIN}
_SETTING = r"(?:reward|task|lora_targets|old_logprobs|group_size|mini_batches|kl)=\w"
_NEW = r"(?<![\w.='-])"  # no part of a longer word, no option already, and nothing that is quoted
_PATTERN = re.compile(
    "|".join(
        (
            rf"{_NEW}sequence_parallel (?P<sp>on|off)\b",
            rf"{_NEW}(?P<kind>offload_(?:optimizer|activations|parameters)) (?P<out>on|off)\b",
            *(rf"{_NEW}(?:{name})(?= {value})" for name, value in _VALUES.items()),
            rf"{_NEW}(?:{'|'.join(_FIELDS)})\b(?![=.(])",
            rf"{_NEW}(?:{'|'.join(_SHORT)})(?= \d)",
            rf"(?<!--set ){_NEW}{_SETTING}",
        )
    )
)


def in_options(hint: str) -> str:
    """A hint of the library with the options of the command line in place of fields.

    Example:
        >>> in_options("zero 0 to 2, or framework huggingface")
        '--zero 0 to 2, or --framework huggingface'
        >>> in_options("sequence_parallel on; or allow_partial")
        '--sp; or --allow-partial'
    """
    return _PATTERN.sub(_option, hint)


def worded(error: SpecError, *, workflow: bool = False) -> SpecError:
    """The error with its hint in the words of the command line; of a line of a file, which has columns, as it is.

    Args:
        error: What is wrong.
        workflow: Whether a workflow was asked about, whose task is a setting.
    """
    if re.search(r":\d+:", error.field) or error.problem in _CALLED_SO:
        return error
    hint = in_options(error.hint)
    option = {**_SHORT, **_FIELDS, **_SAME_WORD}.get(re.sub(r"^(?:job|plan|pins)\.", "", error.field))
    if option is not None and _BARE.match(hint):
        hint = f"{option} {hint}"
    return SpecError(error.field, error.problem, hint.replace("--task ", "--set task=") if workflow else hint)


def _option(found: re.Match[str]) -> str:
    words = found[0]
    if found["sp"]:
        return "--sp" if found["sp"] == "on" else "--no-sp"
    if found["kind"]:
        name = found["kind"].replace("_", "-")
        return f"--{name}" if found["out"] == "on" else f"--no-{name}"
    if "=" in words:
        return f"--set {words}"
    return {**_SHORT, **_FIELDS}.get(words, f"--{words}")
