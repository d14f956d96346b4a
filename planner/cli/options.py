"""The options the commands share, declared once."""

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from functools import wraps
from typing import Annotated, Any, get_args

import typer

FIXED = "Fixed parts of the plan (the rest is searched)"
_JOB, _PLAN, _SEARCH, _OUTPUT = "Job", FIXED, "Search", "Output"


def option(name: str, words: str, panel: str, *more: str, whole: Callable[[str], int] | None = None) -> Any:
    """An option of a command, under a heading of its help.

    Args:
        name: Of the option.
        words: Of its help.
        panel: The heading.
        more: Further names, such as ``-m``.
        whole: What reads a whole number, or refuses it in the words of the library.
    """
    kind = None if whole is None else "<int>"
    return typer.Option(name, *more, help=words, rich_help_panel=panel, show_default=False, parser=whole, metavar=kind)


Model = Annotated[
    list[str],
    typer.Option("--model", "-m", help="Name, size (13b), Hugging Face id, or config.json."),
]
Gpus = Annotated[str, typer.Option("--gpus", "-g", help="8xA100, 2x8xH100-80GB, 72xGB200, or a YAML file.")]

Task = Annotated[str | None, option("--task", "pretrain (default), full, lora or qlora.", _JOB)]
Seq = Annotated[int | None, option("--seq", "Tokens per sequence.", _JOB)]
GlobalBatch = Annotated[int | None, option("--global-batch", "Sequences per optimizer step.", _JOB)]
BatchTokens = Annotated[str | None, option("--batch-tokens", "The same in tokens, e.g. 4M.", _JOB)]
Precision = Annotated[str | None, option("--precision", "fp32, tf32, fp16, bf16, fp8, mxfp8, mxfp4 or nvfp4.", _JOB)]
Optimizer = Annotated[str | None, option("--optimizer", "adamw, adamw8bit, adafactor, sgd or none.", _JOB)]
InBackward = Annotated[
    bool | None,
    option("--optimizer-in-backward/--optimizer-after", "Parameters are updated as gradients come, which go.", _JOB),
]
Paged = Annotated[
    bool | None,
    option("--paged-optimizer/--no-paged-optimizer", "Its states page to the host where room is short.", _JOB),
]
GradientDtype = Annotated[str | None, option("--gradient-dtype", "Format gradients accumulate in.", _JOB)]
MasterDtype = Annotated[str | None, option("--master-dtype", "Format of the master weights, or none.", _JOB)]
StateDtype = Annotated[str | None, option("--state-dtype", "Format of the optimizer moments.", _JOB)]
Attention = Annotated[
    str | None,
    option("--attention", "Default flash; unfused in Megatron before Ampere, and of gpt-oss in transformers.", _JOB),
]
AttentionLibrary = Annotated[
    str | None, option("--attention-library", "flash_2, flash_3 or cudnn; default that of the stack.", _JOB)
]
Dropout = Annotated[bool | None, option("--dropout/--no-dropout", "Dropout masks are kept.", _JOB)]
FusedLoss = Annotated[
    bool | None, option("--fused-loss/--no-fused-loss", "The loss never materialises fp32 logits.", _JOB)
]
LinearLoss = Annotated[
    bool | None, option("--linear-loss/--no-linear-loss", "Nor any logits: Liger, cut cross-entropy.", _JOB)
]
Fp32Unquantised = Annotated[
    bool | None,
    option("--fp32-unquantised/--no-fp32-unquantised", "What QLoRA leaves unquantised is fp32 where cast.", _JOB),
]
FrozenDtype = Annotated[str | None, option("--frozen-dtype", "fp32 where weights beside adapters are loaded so.", _JOB)]
Fp8Activation = Annotated[
    bool | None, option("--fp8-activation/--no-fp8-activation", "Activation inputs kept in 8 bits.", _JOB)
]
Fp8Attention = Annotated[
    bool | None, option("--fp8-attention/--no-fp8-attention", "Attention's tensors kept in 8 bits.", _JOB)
]
Packing = Annotated[float | None, option("--padding-efficiency", "Useful share of the tokens, 1 if packed.", _JOB)]
VariedLengths = Annotated[
    bool | None, option("--varied-lengths/--one-length", "Micro-batches differ in length, --seq is the longest.", _JOB)
]
SampleTokens = Annotated[
    int | None, option("--sample-tokens", "Tokens of a sample, several packed in a sequence.", _JOB)
]
LoraRank = Annotated[int | None, option("--lora-rank", "Rank of the adapters.", _JOB)]
LoraTargets = Annotated[str | None, option("--lora-targets", "Adapted layers, e.g. q,k,v,o.", _JOB)]
Tokens = Annotated[str | None, option("--tokens", "Length of the run, e.g. 15T, for days and dollars.", _JOB)]

Tp = Annotated[int | None, option("--tp", "Tensor parallel.", _PLAN)]
Pp = Annotated[int | None, option("--pp", "Pipeline parallel.", _PLAN)]
Dp = Annotated[int | None, option("--dp", "Data parallel.", _PLAN)]
Cp = Annotated[int | None, option("--cp", "Context parallel.", _PLAN)]
Ep = Annotated[int | None, option("--ep", "Expert parallel.", _PLAN)]
Etp = Annotated[int | None, option("--etp", "Expert tensor parallel.", _PLAN)]
Vpp = Annotated[int | None, option("--vpp", "Virtual stages per pipeline rank.", _PLAN)]
Zero = Annotated[int | None, option("--zero", "ZeRO stage 0 to 3 (3: FSDP).", _PLAN)]
Hsdp = Annotated[int | None, option("--hsdp", "Ranks that share one set of shards; 0: all.", _PLAN)]
MicroBatch = Annotated[int | None, option("--micro-batch", "Sequences per micro-batch.", _PLAN)]
Accumulation = Annotated[int | None, option("--micro-batches", "Micro-batches per step.", _PLAN)]
Recompute = Annotated[str | None, option("--recompute", "none, selective, selective:MODULES, full or block:N.", _PLAN)]
Schedule = Annotated[str | None, option("--schedule", "1f1b, gpipe or zb-v.", _PLAN)]
Sp = Annotated[bool | None, option("--sp/--no-sp", "Megatron sequence parallelism.", _PLAN)]
ContextKind = Annotated[str | None, option("--context-kind", "ring, all_gather or ulysses.", _PLAN)]
AxisOrder = Annotated[str | None, option("--axis-order", "tp_cp_dp_pp or tp_cp_pp_dp, innermost first.", _PLAN)]
FirstLayers = Annotated[int | None, option("--first-stage-layers", "Layers of the first stage.", _PLAN)]
LastLayers = Annotated[int | None, option("--last-stage-layers", "Layers of the last stage.", _PLAN)]
OffloadOptimizer = Annotated[
    bool | None, option("--offload-optimizer/--no-offload-optimizer", "Optimizer on the host.", _PLAN)
]
OffloadActivations = Annotated[
    bool | None, option("--offload-activations/--no-offload-activations", "Checkpoints on the host.", _PLAN)
]
OffloadParameters = Annotated[
    bool | None, option("--offload-parameters/--no-offload-parameters", "Weights on the host.", _PLAN)
]

Framework = Annotated[
    str | None,
    option(
        "--framework",
        "megatron, deepspeed, fsdp, nanotron or huggingface, a tool such as trl, or another of planner frameworks.",
        _SEARCH,
    ),
]
StackFit = Annotated[str | None, option("--stack-fit", "Stacks as planner calibrate --runs wrote them.", _SEARCH)]
Objective = Annotated[str, option("--objective", "step_time (default), cost, fewest_gpus or memory_headroom.", _SEARCH)]
MaxOomRisk = Annotated[
    float | None, option("--max-oom-risk", "Share of runs a ranked plan may run out of memory in (0.2).", _SEARCH)
]
Top = Annotated[int, typer.Option("--top", help="Most plans to list.", rich_help_panel=_SEARCH)]
Variants = Annotated[bool, option("--variants", "List plans that differ only in details one by one.", _SEARCH)]
NamedModules = Annotated[bool, option("--named-modules", "Also consider recomputing parts of layers.", _SEARCH)]
Offload = Annotated[bool, option("--offload", "Also consider offloading to host memory.", _SEARCH)]
Fabric = Annotated[str | None, option("--fabric", "Network link between nodes, e.g. ib-hdr-200.", _SEARCH)]
Reserve = Annotated[float, option("--reserve-gib", "GPU memory to leave free, GiB.", _SEARCH)]
Price = Annotated[float | None, option("--price-per-gpu-hour", "Dollars; no price is assumed.", _SEARCH)]
PriceDate = Annotated[str, option("--price-date", "When that was the price, e.g. 2026-11-20.", _SEARCH)]

Pareto = Annotated[bool, option("--pareto", "Also list what trades time, memory and GPUs.", _OUTPUT)]
Json = Annotated[bool, option("--json", "Print the document instead of tables.", _OUTPUT)]
Output = Annotated[str | None, option("--output", "Also write the document to this file.", _OUTPUT, "-o")]
Quiet = Annotated[bool, option("--quiet", "No warnings, assumptions or progress.", _OUTPUT, "-q")]
Debug = Annotated[bool, option("--debug", "Show the traceback of an internal error.", _OUTPUT)]


# fmt: off
def question(
    model: Model,
    gpus: Gpus,
    task: Task = None,
    seq: Seq = None,
    global_batch: GlobalBatch = None,
    batch_tokens: BatchTokens = None,
    precision: Precision = None,
    optimizer: Optimizer = None,
    optimizer_in_backward: InBackward = None,
    paged_optimizer: Paged = None,
    gradient_dtype: GradientDtype = None,
    master_dtype: MasterDtype = None,
    state_dtype: StateDtype = None,
    attention: Attention = None, attention_library: AttentionLibrary = None,
    dropout: Dropout = None,
    fused_loss: FusedLoss = None, linear_loss: LinearLoss = None,
    fp32_unquantised: Fp32Unquantised = None, frozen_dtype: FrozenDtype = None,
    fp8_activation: Fp8Activation = None, fp8_attention: Fp8Attention = None,
    padding_efficiency: Packing = None,
    varied_lengths: VariedLengths = None, sample_tokens: SampleTokens = None,
    lora_rank: LoraRank = None,
    lora_targets: LoraTargets = None,
    tokens: Tokens = None,
    tp: Tp = None,
    pp: Pp = None,
    dp: Dp = None,
    cp: Cp = None,
    ep: Ep = None,
    etp: Etp = None,
    vpp: Vpp = None,
    zero: Zero = None,
    hsdp: Hsdp = None,
    micro_batch: MicroBatch = None,
    micro_batches: Accumulation = None,
    recompute: Recompute = None,
    schedule: Schedule = None,
    sp: Sp = None,
    context_kind: ContextKind = None,
    axis_order: AxisOrder = None,
    first_stage_layers: FirstLayers = None,
    last_stage_layers: LastLayers = None,
    offload_optimizer: OffloadOptimizer = None,
    offload_activations: OffloadActivations = None,
    offload_parameters: OffloadParameters = None,
    framework: Framework = None,
    stack_fit: StackFit = None,
    objective: Objective = "step_time", max_oom_risk: MaxOomRisk = None,
    offload: Offload = False,
    named_modules: NamedModules = False,
    fabric: Fabric = None,
    reserve_gib: Reserve = 0.0,
    price_per_gpu_hour: Price = None,
    price_date: PriceDate = "",
    json_: Json = False,
    output: Output = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """What every question may say; a declaration only, see ``asks``."""
# fmt: on


def asks(
    command: Callable[..., None],
    *,
    also: Callable[..., None] | None = None,
    optional: tuple[str, ...] = (),
    refused: tuple[str, ...] = (),
) -> Callable[..., None]:
    """Give a command the options of ``question``; it receives their values as its first argument.

    Args:
        command: Takes the mapping of values, then options of its own.
        also: Another declaration; its values come as one mapping under its name.
        optional: Which of ``model`` and ``gpus`` may be left out, and are empty then.
        refused: Options that it says why it does not take: its help leaves them out.
    """
    own = list(inspect.signature(command).parameters.values())[1:]
    shared = list(inspect.signature(question).parameters.values())
    more = [] if also is None else list(inspect.signature(also).parameters.values())
    empty: dict[str, Any] = {"model": [], "gpus": ""}
    shared = [item.replace(default=empty[item.name]) if item.name in optional else item for item in shared]
    shared = [_unlisted(item) if item.name in refused else item for item in shared]
    parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in (*shared, *own, *more)]

    @wraps(command)
    def asked(**values: Any) -> None:
        extra = {item.name: values.pop(item.name) for item in own}
        if also is not None:
            values[also.__name__] = {item.name: values.pop(item.name) for item in more}
        command(values, **extra)

    asked.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    asked.__annotations__ = {item.name: item.annotation for item in parameters}
    return asked


def _unlisted(item: inspect.Parameter) -> inspect.Parameter:
    """The option without a line in the help."""
    kind, listed = get_args(item.annotation)
    hidden = copy(listed)
    hidden.hidden = True
    return item.replace(annotation=Annotated[kind, hidden])


def asked_risk(values: Mapping[str, Any]) -> dict[str, float]:
    """The risk that was asked for, as a setting of the library; none where its own default holds."""
    return {} if values["max_oom_risk"] is None else {"max_oom_risk": values["max_oom_risk"]}


def given(values: Mapping[str, Any], command: Callable[..., None]) -> dict[str, Any]:
    """Those of a command's options that have another value than the one they are declared with."""
    declared = inspect.signature(command).parameters
    return {name: value for name, value in values.items() if value != declared[name].default}
