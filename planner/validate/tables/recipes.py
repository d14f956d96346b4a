"""What a publisher's own recipes set where its tables print nothing: recomputation and interleaving.

NVIDIA publishes the scripts of its tables. None of them recomputes a dense model:

- NeMo docs: the scripts and configurations of NeMo 24.07 (NVIDIA/NeMo-Framework-Launcher: examples/training/*/h100,
  examples/peft/llama/h100; launcher_scripts/conf/training/{gpt3,llama,nemotron}, conf/peft/llama/sft.yaml) have
  ``activations_checkpoint_granularity: null`` or no layers of it.
- dgxc-benchmarking: NeMo's scripts/performance/recommended_model_configs have ``recompute_layers`` 0, and so has
  conf/training/grok; deepseek_v3/pretraining/launch.sh recomputes ``mla_up_proj`` on H100, ``core_attn`` on GB200.
- dgxc-benchmarking in Paxml: paxml/paxml_mod_configs.py saves the results of all products of 5B (``SAVE_DOT_ONLY``),
  those of attention's alone of 175B (``SAVE_QKV_OUT_PROJ``). Fused attention is no product to XLA, and runs again.
- MLPerf, LoRA in NVIDIA's container (its settings name ``FP8_DPA``): systems that print it, and NeMo's
  scripts/performance/llm/mlperf_lora_llama2_70b.py, recompute nothing.
- MLPerf, LoRA again: ``FP8_ACTIVATION``, or ``FP8_ACT`` from v5.0 on, keeps the inputs of activation functions in
  8 bits (in v5.0 where a rank works on whole sequences: config_DGXB200_1x8x1xtp1pp1cp1.sh and
  config_GB200_2x4x1xtp1pp1cp1.sh), ``FP8_DPA`` with ``NVTE_FP8_DPA_BWD`` the tensors of attention.
- FlagPerf, Aquila2: its script (training/benchmarks/aquila2_7b/flagscale/flagscale_main.sh) gives no
  ``--sequence-parallel``, those of its other models do.
- Megatron-Bridge: its workload presets recompute parts of layers of DeepSeek's models, and offload some layers'
  activations where they use FSDP. The tables print neither.
"""

import re

from costmodels.plan import Recompute, RecomputeModule
from planner.validate.tables import wording
from planner.validate.tables.reader import Row
from profiles.model import ModelSpec
from profiles.stack import StackSpec

PRESET_RECOMPUTE = "recomputation as in its publisher's presets"
MODULES_RECOMPUTED = "recomputation or offloading of parts of a layer, as in its publisher's presets"
PRESET_INTERLEAVING = "interleaving as in its publisher's presets"

_NEVER = 1000  # micro-batches per update where there is none: enough for its share to vanish
# Chunks per stage of NeMo docs' rows. Later revisions of the page print them for pre-training, the scripts of the
# fine-tuning rows (13b_1node.sh, 70b_2node.sh) set the same; that of LoRA (70b_1node_lora.sh) sets none.
_NEMO_CHUNKS = {"llama2-13b": 10, "llama2-70b": 20, "llama3-70b": 5, "nemotron-340b": 12}


def preset_recompute(row: Row, model: ModelSpec) -> tuple[Recompute, RecomputeModule, str] | None:
    """What is recomputed, which modules of a layer if selective, and the assumption; None if no recipe is known."""
    source, paxml = row.text("source").lower(), "paxml" in row.text("framework").lower()
    lora = "mlperf" in source and "FP8_DPA" in row.text("notes") and row.text("task").lower() == "lora"
    if paxml and "dgxc" in source:
        modules = RecomputeModule.CORE_ATTN
        if "175b" in row.text("model").lower():
            modules |= RecomputeModule.MLP
        return Recompute.SELECTIVE, modules, f"{PRESET_RECOMPUTE}: selective"
    if not lora and (paxml or not re.search("megatron-bridge|nemo docs|dgxc", source)):
        return None
    if model.latent_attention is not None:
        return Recompute.SELECTIVE, _latent_modules(row), f"{MODULES_RECOMPUTED}: selective"
    whole = not re.search(r"Megatron-FSDP|use_megatron_fsdp=True", row.text("notes"))
    note = f"{PRESET_RECOMPUTE if whole else MODULES_RECOMPUTED}: none"
    return Recompute.NONE, RecomputeModule.CORE_ATTN, note


def _latent_modules(row: Row) -> RecomputeModule:
    """Modules of a layer with latent attention that are recomputed.

    Megatron-Bridge's presets name ``mla_up_proj``, on H100 ``mlp`` besides; those of FP8 on GB200 ``mlp`` alone in
    release 26.04 (tags v0.3.0 to v0.5.1); later ones capture whole iterations.
    """
    gpu, precision = row.text("gpu").lower(), row.text("precision").lower()
    if "dgxc" in row.text("source").lower():
        return RecomputeModule.MLA_UP_PROJ if "h100" in gpu else RecomputeModule.CORE_ATTN
    if "h100" in gpu:
        return RecomputeModule.MLA_UP_PROJ | RecomputeModule.MLP
    dense_alone = "gb200" in gpu and "8" in precision and re.search(r"\b26\.04[. \d]*NeMo Container", row.text("notes"))
    return RecomputeModule.MLP if dense_alone else RecomputeModule.MLA_UP_PROJ


def preset_stage_layers(row: Row, model: ModelSpec, stages: int) -> tuple[int, ...]:
    """Layers of every stage as its publisher's recipe lays out DeepSeek-V3; () if no recipe is known.

    Of 64 places, three are not layers. NeMo's script leaves one out of the first stage and two of the last
    (pretrain_deepseek_v3.py), as does Megatron-Bridge's layout for H100 (``Et|(tt|)*30mL``), its others three of the
    last (set_deepseek_v3_pipeline_model_parallel_layout).
    """
    source, each = row.text("source").lower(), 64 // stages
    if model.num_layers != 61 or model.latent_attention is None or stages == 1 or 64 % stages or each < 4:
        return ()
    if "dgxc" in source or ("megatron-bridge" in source and "h100" in row.text("gpu").lower()):
        return (each - 1, *[each] * (stages - 2), each - 2)
    return (*[each] * (stages - 1), each - 3) if "megatron-bridge" in source else ()


def runs_nemo_scripts(row: Row) -> bool:
    """Whether dgxc-benchmarking ran NVIDIA/NeMo's scripts/performance: from v25.05 on."""
    release = re.search(r"release v25\.(?:0[5-9]|1)", row.text("notes"))
    return "dgxc" in row.text("source").lower() and release is not None


def fuses_cross_entropy(row: Row, stack: str) -> bool:
    """Whether a recipe's loss holds no fp32 logits, or those of a part of the tokens at a time, as torchtune's.

    llm-foundry's models take loss_fn fused_crossentropy unless told otherwise; others under Composer may not.
    Megatron-Bridge's and NeMo's scripts (scripts/performance/helpers.py) take Transformer Engine's
    (cross_entropy_fusion_impl = "te").
    """
    said = re.search("(?<!no )ce fusion|(?:chunked|fused) cross-entropy", row.text("notes").lower()) is not None
    composer = stack.startswith("fsdp-composer") and "loss by F.cross_entropy" not in row.text("notes")
    return said or composer or runs_nemo_scripts(row) or "megatron-bridge" in row.text("source").lower()


def projects_in_loss(row: Row, asked: StackSpec | None) -> bool:
    """Whether the loss projects a part of the tokens at a time, so that logits are never held (Liger).

    Args:
        row: The row.
        asked: Stack of a row of a user's own table, which means what the same question would; None of published ones.
    """
    said = "fused linear cross-entropy" in row.text("notes").lower()
    return said or (asked is not None and asked.joins_loss(wording.sequence_length_of(row)))


def omits_tensor_overlap(row: Row) -> bool:
    """Whether a recipe splits no tensor-parallel traffic where its stack would.

    dgxc-benchmarking's grok1/grok1_314b.yaml says ``ub_tp_comm_overlap: false``; NeMo's script for it overlaps. Of
    4 bits none does: Transformer Engine refuses (``planner.rules.state``, ``tensor_overlap_has_formats``).
    """
    if wording.precision_of(row) in ("nvfp4", "mxfp4"):
        return True
    return "dgxc" in row.text("source").lower() and "grok" in row.text("model").lower() and not runs_nemo_scripts(row)


def omits_sequence_parallel(row: Row) -> bool:
    """Whether a recipe goes without sequence parallelism where its stack would not."""
    return "aquila2" in row.text("model").lower()


def kept_in_8_bits(row: Row) -> tuple[bool, bool]:
    """Whether a row's recipe keeps inputs of activation functions, and attention's tensors, in 8 bits."""
    source, notes = row.text("source").lower(), row.text("notes")
    if "mlperf" not in source or row.text("task").lower() != "lora":
        return False, False
    whole = all((row.integer(column) or 1) == 1 for column in ("tp", "pp", "cp"))
    switched = re.search(r"\bFP8_ACT(?:IVATION)?=(\w+)", notes)
    activation = switched.group(1) in ("1", "True") if switched else whole and "v5.0" in source and "FP8_DPA" in notes
    return activation, re.search(r"\bFP8_DPA=1\b.*NVTE_FP8_DPA_BWD=1\b", notes) is not None


def attention_of(row: Row, model: ModelSpec, *, precision: str, default: str) -> str:
    """Whose attention ran, ``flash`` or ``unfused``: as printed, else as in the publisher's recipe, else the stack's.

    FlashAttention takes 16-bit heads only ("FlashAttention only support fp16 and bf16 data type", its flash_api.cpp).
    """
    if precision in ("fp32", "tf32"):
        return "unfused"
    flash = row.flag("flash_attention")
    if flash is None:
        return _preset_attention(row, model) or default
    return "flash" if flash else "unfused"


def attention_library_of(row: Row, attention: str) -> str:
    """Whose fused attention a row's notes name; "" where they leave it to the stack."""
    if attention != "flash":
        return ""
    named = re.search(r"FlashAttention ([23])\b|attention by (cuDNN)", row.text("notes"))
    return "" if named is None else "cudnn" if named.group(2) else f"flash_{named.group(1)}"


def _preset_attention(row: Row, model: ModelSpec) -> str | None:
    """Attention of a recipe that does not print it, where it is not the stack's.

    dgxc-benchmarking's DeepSeek-V3 on GB200 runs in NeMo 25.04.01 (its launch.sh), of May 2025. Until cuDNN 9.11, of
    June 2025, nothing fused trains latent attention's heads (192 and 128 wide) on Blackwell (Transformer Engine pull
    request 1797; FlashAttention 2 takes heads of one width only), which is why its scores are recomputed there, and on
    H100 are not.

    FlagPerf's adapters run in transformers 4.31 (training/nvidia/llama2_7b_finetune-pytorch/config/requirements.txt),
    whose Llama knows only attention op by op. So does LitGPT where logits are capped ("with softcapping we cannot use
    SDPA", CausalSelfAttention in its model.py): in Gemma 2.
    """
    if "litgpt" in row.text("framework").lower():
        return "unfused" if model.attention_softcap else None
    if "flagperf" in row.text("source").lower() and "peft" in row.text("framework").lower():
        return "unfused"
    early = re.search(r"release v25\.05\b", row.text("notes")) and "dgxc" in row.text("source").lower()
    blackwell = "gb200" in row.text("gpu").lower()
    return "unfused" if early and blackwell and model.latent_attention is not None else None


def preset_accumulation(row: Row) -> int | None:
    """Micro-batches per update of a row whose steps are not updates; None if there is none.

    VectorLM's profiling/benchmark.py times ``Trainer.train_step``, one micro-batch, and that alone counts no steps:
    ``tr_step`` stays 0, so that every one of them only accumulates gradients and the optimizer never runs (which
    is also why an 8B model and its gradients fit one 80 GB GPU with 16,384 tokens). Its configuration file says 4.
    """
    return _NEVER if "vectorlm" in row.text("source").lower() else None


def preset_chunks(row: Row, task: str) -> int | None:
    """Chunks per stage of a row that does not print them; None if no recipe is known."""
    if "nemo docs" not in row.text("source").lower():
        return None
    return 1 if task == "lora" else _NEMO_CHUNKS.get(row.text("model").lower())
