"""How tables word things: text cells and notes turned into the planner's terms."""

import re

from costmodels.plan import Recompute, RecomputeModule
from costmodels.workload import ADAPTER_TASKS, JOINT_TARGET, LORA_TARGETS, LoraSpec
from planner.question.lora import read_rank, read_targets
from planner.validate.tables.reader import Row
from planner.validate.tables.rows import CannotScore

# Functions that make the recipes of NVIDIA's libraries, as Megatron-Bridge and NeMo name them.
_LIBRARY_RECIPE = re.compile(r"\b(?:(?:qwen|llama)\w*_pretrain_config|llama\w*\.pretrain_recipe)\b")
_ATTENTION_ONLY = ("q", "k", "v", "o")
_ACCUMULATION = (
    r"gradient_accumulation_steps[ =]+([0-9]+)",
    r"grad_accum[ =]+([0-9]+)",
    r"gradient accumulation[ =]+([0-9]+)",
    r"\bGAS[ =]+([0-9]+)",
    r"\baccumulation ([0-9]+)",
    r"number of microbatches ([0-9]+)",
    r"\bGA[ =]+([0-9]+)",
)


def recompute_of(row: Row) -> tuple[Recompute, int] | None:
    """Kind of recomputation and, for ``BLOCK``, the layers per stage; None when the table is silent.

    torchtitan's selective mode keeps every other product (``costmodels.memory.saved_products``), or recomputes every
    other layer, where the row says so: ``BLOCK`` with half of them. Float8 linears are no exception: they call
    ``torch.mm`` on tensors that wrap 8 bits (``matmul_with_hp_or_float8_args`` of torchao's float8_linear.py), and the
    mode that saves results sees that call before the wrapper turns it into another.

    Raises:
        CannotScore: If the word is unknown.
    """
    text = row.text("recompute").lower()
    if not text:
        return None
    if text.startswith("block"):
        layers = re.search(r"([0-9]+)", text)
        if layers is None:
            raise CannotScore(f"recompute {text[:30]!r} does not say how many layers")
        return Recompute.BLOCK, int(layers.group(1))
    if "selective layer" in f"{text} {row.text('notes').lower()}" and "torchtitan" in row.text("framework").lower():
        return Recompute.BLOCK, -2
    for word, kind in (("none", Recompute.NONE), ("no", Recompute.NONE), ("selective", Recompute.SELECTIVE),
                       ("full", Recompute.FULL), ("yes", Recompute.FULL)):  # fmt: skip
        if text.startswith(word):
            return kind, 0
    raise CannotScore(f"recompute {text[:30]!r} is not a kind the planner prices")


def recomputed_modules_of(row: Row) -> RecomputeModule:
    """Modules of a layer that selective recomputation repeats: those of Megatron-Core's switch, if notes quote it.

    Raises:
        CannotScore: If one of them is unknown.
    """
    quoted = re.search(r"--recompute-modules ((?:[a-z_]+ ?)+)", row.text("notes"))
    found = RecomputeModule(0)
    for name in quoted.group(1).split() if quoted else ["core_attn"]:
        try:
            found |= RecomputeModule[name.upper()]
        except KeyError:
            raise CannotScore(f"recomputed module {name[:30]!r} is not one the planner prices") from None
    return found


def keeps_no_master_copy(row: Row) -> bool:
    """Whether notes say that weights, gradients and moments are all there is of a parameter, in 16 bits each."""
    return "16-bit weights and moments, no master copy" in row.text("notes")


def names_dropout(row: Row) -> bool:
    """Whether notes give the rate at which a model drops out activations."""
    return re.search(r"(?:^|[;,] )dropout 0\.0*[1-9]", row.text("notes")) is not None


def keeps_long_moments_alone(row: Row) -> bool:
    """Whether notes say that fp32 moments stand beside 16-bit weights, without a copy of those in fp32."""
    return "16-bit weights, fp32 moments, no master copy" in row.text("notes")


def keeps_short_moments(row: Row) -> bool:
    """Whether notes say that moments alone are in 16 bits, beside fp32 weights (Megatron-Core's exp_avg_dtype)."""
    return "moments in 16 bits" in row.text("notes")


def precision_of(row: Row) -> str | None:
    """Recipe name; None when the table is silent."""
    text = row.text("precision").lower()
    for word, recipe in (
        ("nvfp4", "nvfp4"), ("fp4+", "nvfp4"), ("mxfp4", "mxfp4"), ("mxfp8", "mxfp8"), ("fp8-mx", "mxfp8"),
        ("fp8", "fp8"), ("float8", "fp8"), ("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16"),
        ("float16", "fp16"), ("mixed", "fp16"), ("tf32", "tf32"), ("fp32", "fp32"), ("float32", "fp32"),
    ):  # fmt: skip
        if word in text:
            return recipe
    return None


def zero_stage_of(row: Row) -> tuple[int, bool, str] | None:
    """ZeRO stage, whether it is hybrid (sharded within a node), and a remark; None when silent."""
    text = row.text("zero_stage").lower()
    if not text:
        named = re.search(r"zero-([1-3])\b", row.text("framework").lower())
        return (int(named.group(1)), False, "") if named else None
    if text.startswith("hsdp"):
        return 3, True, ""
    if text.startswith("fsdp"):
        return (2 if "not resharded" in text else 3), False, ""
    if text.startswith("none"):
        return 0, False, ""
    digits = re.match(r"(?:zero[- ]?)?([0-3])", text)
    if digits is None:
        raise CannotScore(f"ZeRO stage {text[:30]!r} is not one the planner knows")
    ambiguous = re.match(r"[0-3] or [0-3]", text)
    return int(digits.group(1)), False, f"ZeRO stage printed as {text!r}" if ambiguous else ""


def offload_of(row: Row) -> tuple[bool, bool, bool]:
    """Whether optimizer states, activations and parameters live on the host.

    Raises:
        CannotScore: If a disk is involved.
    """
    text = row.text("offload").lower()
    if not text or text.startswith(("none", "no")):
        return False, False, False
    if "nvme" in text:
        raise CannotScore("offloaded to disk: not priced")
    if re.search(r"activations of [0-9]+ layers", text):
        raise CannotScore("only some layers' activations are offloaded: not priced")
    optimizer, activations, parameters = "optimizer" in text, "activation" in text, "param" in text
    if not (optimizer or activations or parameters):
        raise CannotScore(f"offload {text[:30]!r} does not say what is offloaded")
    return optimizer, activations, parameters


def has_fp32_weights(row: Row) -> bool:
    """Whether weights are fp32, be it that 16-bit products run under autocast on them."""
    return re.search(r"^(?:fp|tf)32\b|fp32 weights", row.text("precision").lower()) is not None


def gradient_dtype_of(row: Row, sixteen_bit_states: bool) -> str:
    """Format gradients are accumulated in: under autocast that of the weights; "" leaves it to the stack.

    NVIDIA's performance recipes reduce gradients in 16 bits (grad_reduce_in_fp32 = False), those of its libraries do
    not (bf16_mixed and _qwen3_common of NVIDIA-NeMo/Megatron-Bridge; trainer of NVIDIA/NeMo's llama31_8b recipe).
    """
    if _LIBRARY_RECIPE.search(row.text("notes")):
        return "fp32"
    if "fp32 grad accumulation" in f"{row.text('notes')} {row.text('optimizer')}".lower() or has_fp32_weights(row):
        return "fp32"
    publisher = f"{row.text('source')} {row.text('framework')}".lower()
    if "gradients reduced in 16 bits" in row.text("notes").lower():
        return "bf16"
    if sixteen_bit_states or re.search(r"dgxc|megatron-bridge|nemo|nvidia.*mlperf|mlperf.*nvidia", publisher):
        return "bf16"
    return ""


def optimizer_of(row: Row) -> str:
    """Optimizer name.

    Raises:
        CannotScore: If the planner does not price it.
    """
    text = row.text("optimizer").lower()
    if "8-bit" in text or "8bit" in text:
        return "adamw8bit"
    if not text or "adam" in text:
        return "adamw"
    for known in ("adafactor", "sgd"):
        if known in text:
            return known
    raise CannotScore(f"optimizer {row.text('optimizer')[:30]!r} is not priced")


def task_of(row: Row) -> str:
    """Task name.

    Raises:
        CannotScore: If the planner does not price it.
    """
    text = row.text("task").lower()
    if text in ("", "pretrain", "pretraining", "pre-training"):
        return "pretrain"
    if text in ("full", "full_ft", "sft", "full_finetune"):
        return "full"
    if text in ADAPTER_TASKS:
        variant = re.search(r"\b(?:use_dora=true|dora|bdlora|lorafa|mica|lora\+|loraplus)\b", row.text("notes").lower())
        if variant:
            raise CannotScore(f"LoRA variant {variant.group(0)!r} is not priced")
        weights = row.text("precision").lower()
        if re.search(r"int8|2bit|aqlm", weights + row.text("model").lower()):
            raise CannotScore("weights quantised to other than 4 bits: not priced")
        return "qlora" if re.search(r"nf4|int4|4bit|4-bit|awq|gptq", weights + row.text("model").lower()) else text
    raise CannotScore(f"fine-tuning method {row.text('task')[:30]!r} is not priced")


def lora_of(row: Row) -> LoraSpec:
    """Rank and targets of the adapters, as far as the notes say; else r=8 on queries and values.

    NeMo of 24.07 has one adapter of rank 32 on queries, keys and values (NVIDIA/NeMo-Framework-Launcher,
    conf/peft/llama/sft.yaml; NVIDIA/NeMo, nlp/parts/peft_config.py, LoraPEFTConfig).
    """
    said = adapter_columns(row)
    if "nemo docs" in row.text("source").lower():
        return LoraSpec(rank=32, targets=_ATTENTION_ONLY[:3])
    mlperf = "mlperf" in row.text("source").lower()
    targets = said[1] or noted_targets(row)
    if targets is None:
        wide = mlperf or re.search(r"nemo|megatron", row.text("framework").lower())
        targets = _ATTENTION_ONLY if wide else ("q", "v")
    given = said[0] or noted_rank(row) or (16 if mlperf else 8)
    return LoraSpec(rank=given, targets=targets, dropout=_drops_adapter_inputs(row))


def adapter_columns(row: Row) -> tuple[int | None, tuple[str, ...] | None]:
    """Rank and targets of the adapters as columns of their own have them, in the words of ``planner plan``.

    Raises:
        SpecError: If a cell is none of them.
    """
    rank, words = row.integer("lora_rank"), row.text("lora_targets")
    return (
        None if rank is None else read_rank(rank, row.where("lora_rank")),
        read_targets(words, row.where("lora_targets")) if words else None,
    )


def noted_rank(row: Row) -> int | None:
    """Rank of the adapters that notes name as such (``r=8``, ``lora rank 8``); "rank 0" alone is a device."""
    found = re.search(r"(?:\blora[_ ]r(?:ank)?[ =]*|\br(?:ank)? ?= ?)([1-9][0-9]{0,4})\b", row.text("notes").lower())
    return int(found.group(1)) if found else None


def noted_targets(row: Row) -> tuple[str, ...] | None:
    """Layers that notes say carry adapters; None where they do not."""
    lowered = row.text("notes").lower()
    targets: tuple[str, ...] | None = None
    switches = dict(re.findall(r"\b(q|k|v|proj|mlp)=(true|false)", lowered))
    if switches:
        named = {"q": ("q",), "k": ("k",), "v": ("v",), "proj": ("o",), "mlp": ("gate", "up", "down")}
        targets = tuple(t for key, group in named.items() if switches.get(key) == "true" for t in group)
    elif re.search(r"target[a-z_ ]*[ =:\"']*all", lowered):
        targets = LORA_TARGETS
    elif "attention-only" in lowered:
        targets = _ATTENTION_ONLY
    if "c_attn" in lowered:  # one layer, and one adapter, for all three
        targets = (JOINT_TARGET, *(name for name in targets or () if name not in ("q", "k", "v", JOINT_TARGET)))
    return targets


def names_adapter_dropout(row: Row) -> bool:
    """Whether notes name a share of adapters' inputs that is dropped."""
    return re.search(r"lora_dropout=0\.0*[1-9]", row.text("notes")) is not None


def _drops_adapter_inputs(row: Row) -> bool:
    """Whether adapters keep copies and masks of what dropout leaves of their inputs.

    LitGPT, ms-swift and llama-recipes drop 5 % by default, the command in PEFT's documentation 10 %. So do MLPerf's
    runs, but with a compiled kernel that draws the mask again. Notes may name the share.
    """
    text = f"{row.text('framework')} {row.text('source')}".lower()
    return names_adapter_dropout(row) or re.search(r"litgpt|ms-swift|llama-recipes|hf peft docs", text) is not None


def casts_unquantised(row: Row) -> bool:
    """Whether what QLoRA leaves unquantised may be cast: not with GPTQ's weights, nor where notes deny it."""
    text = f"{row.text('precision')} {row.text('model')} {row.text('notes')}".lower()
    return re.search(r"gptq|no cast to fp32", text) is None


def varies_lengths(row: Row) -> bool:
    """Whether micro-batches are padded to their own longest sample.

    LitGPT's scripts do so, ms-swift unless it packs samples, PEFT's comparison of methods, and whoever notes it.
    """
    text = f"{row.text('framework')} {row.text('source')}".lower()
    notes = row.text("notes").lower()
    if "samples of varied length" in notes:
        return True
    return re.search(r"packing[ =]+true", notes) is None and re.search(r"litgpt|ms-swift|hf peft", text) is not None


def updates_in_backward(row: Row) -> bool:
    """Whether parameters are updated as their gradients come (torchtune's ``optimizer_in_bwd``)."""
    return "optimizer in backward" in row.text("notes").lower()


def noted_experts(row: Row) -> int | None:
    """Expert-parallel degree of a table without a column for it, as notes say ``EP 8``."""
    found = None if "ep" in row.cells else re.search(r"\bEP (\d+)\b", row.text("notes"))
    return int(found[1]) if found else None


def bracketed_micro_batch(row: Row, data_parallel: int) -> int | None:
    """Micro-batch of a row whose settings stand in brackets behind those of another, in Megatron-Bridge's columns.

    Where the accumulation differs the micro-batch does, too, which is printed once.
    """
    match = re.search(r'value inside parentheses of the printed row "[^"]*\| *[0-9]+ \(([0-9]+)\)(?: \|[^|"]*){2}"',
                      row.text("notes"))  # fmt: skip
    batch = row.integer("global_batch_seqs")
    count = data_parallel * int(match.group(1)) if match else 0
    return batch // count if batch and count and batch % count == 0 else None


def sequence_length_of(row: Row) -> int:
    """Tokens per sequence.

    Raises:
        CannotScore: If it is not stated.
    """
    if length := row.integer("seq_len"):
        return length
    if "padded to the longest" in row.text("notes"):
        raise CannotScore("samples padded to the longest of a micro-batch, whose length is not printed")
    raise CannotScore("sequence length not stated")


def accumulation_of(row: Row) -> int | None:
    """Micro-batches per step and data-parallel rank, where the notes print them."""
    for pattern in _ACCUMULATION:
        match = re.search(pattern, row.text("notes"))
        if match:
            return int(match.group(1))
    return None
