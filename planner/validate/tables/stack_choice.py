"""Which framework stack, of which era, a published row ran on - and what that stack does by default.

The defaults hold what a table leaves out because everyone who uses the stack knows it: the ZeRO stage
of Megatron-Core's distributed optimizer, the attention kernel of a pre-flash code base, and so on.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass

from planner.validate.tables.reader import Row
from planner.validate.tables.rows import CannotScore


@dataclass(frozen=True, slots=True, kw_only=True)
class StackDefaults:
    """A stack as of one era, and what it does where a table does not say.

    Attributes:
        stack: Name of the ``StackSpec``.
        zero_stage: Data-parallel sharding.
        zero_is_known: Everyone who runs this stack uses that stage, so that it is no assumption.
        sequence_parallel: Whether tensor parallelism implies Megatron sequence parallelism.
        recompute: Whether large runs recompute everything unless they say otherwise.
        precision: 16-bit format of the era.
        dropout: Whether pre-training recipes keep dropout masks.
        sixteen_bit_states: Fine-tuning keeps weights, gradients and moments in bf16, with no master copy;
            adapters do not where the stack's are fp32.
        overlap_grad_reduce: Gradient reduction runs under the backward pass.
        overlap_param_gather: Parameter gathering runs under the forward pass.
        tensor_parallel_overlap: Tensor-parallel traffic is split and run under the GEMMs.
    """

    stack: str
    zero_stage: int = 0
    zero_is_known: bool = True
    sequence_parallel: bool = False
    recompute: bool = False
    precision: str = "bf16"
    dropout: bool = False
    sixteen_bit_states: bool = False
    overlap_grad_reduce: bool = True
    overlap_param_gather: bool = True
    tensor_parallel_overlap: bool = False


_MEGATRON_2021 = StackDefaults(
    stack="megatron-2021",
    recompute=True,
    precision="fp16",
    dropout=True,
    overlap_grad_reduce=False,
    overlap_param_gather=False,
)
_MEGATRON_CORE = StackDefaults(
    stack="megatron-core", zero_stage=1, sequence_parallel=True, tensor_parallel_overlap=True
)
# Megatron-LM overlaps nothing unless told to: --tp-comm-overlap, --overlap-grad-reduce and --overlap-param-gather are
# off by default (megatron/training/arguments.py). NeMo's recipes switch them on. FlagPerf's scripts do not
# (training/benchmarks/{llama2_70B,llama3_8B,llama3_70B,mixtral_8x7B}/megatron); MegaScale adds them to its baseline
# one by one (arXiv:2402.15627, table 3).
_MEGATRON_LM = dataclasses.replace(
    _MEGATRON_CORE, overlap_grad_reduce=False, overlap_param_gather=False, tensor_parallel_overlap=False
)
_MEGATRON_2024 = dataclasses.replace(_MEGATRON_LM, stack="megatron-2024")
_MEGATRON_2023 = dataclasses.replace(_MEGATRON_LM, stack="megatron-2023")
_MEGATRON_2023_NORMS = dataclasses.replace(_MEGATRON_LM, stack="megatron-2023-plain-norms")
_MEGATRON_EP_OVERLAP = dataclasses.replace(_MEGATRON_CORE, stack="megatron-core-ep-overlap")
_DEEPSPEED_2022 = StackDefaults(
    stack="deepspeed-megatron", zero_stage=3, zero_is_known=False, recompute=True, precision="fp16"
)
# Every gathering of ZeRO-3 waited for the device (torch.cuda.synchronize) until DeepSpeed's pull request 1188 of June
# 2021. SC21's comparison is of that April.
_DEEPSPEED_2021 = dataclasses.replace(_DEEPSPEED_2022, overlap_param_gather=False)
_DEEPSPEED = StackDefaults(stack="deepspeed", zero_stage=3, zero_is_known=False)
_DEEPSPEED_GPTQ = dataclasses.replace(_DEEPSPEED, stack="deepspeed-gptq", zero_stage=2)
_DEEPSPEED_2024 = dataclasses.replace(_DEEPSPEED, stack="deepspeed-2024")
_DEEPSPEED_LIGER = dataclasses.replace(_DEEPSPEED, stack="deepspeed-liger")
_XTUNER = dataclasses.replace(_DEEPSPEED, stack="xtuner")
_MEGATRON_TOKEN_DROP = dataclasses.replace(_MEGATRON_CORE, stack="megatron-core-token-drop")
# Primus gathers weights in 16 bits (fp8_param_gather: false in its trainer_base.yaml).
_MEGATRON_16BIT_WEIGHTS = dataclasses.replace(_MEGATRON_CORE, stack="megatron-core-16bit-weights")
_MEGATRON_HYBRID_EP = dataclasses.replace(_MEGATRON_CORE, stack="megatron-core-hybrid-ep")
_MEGATRON_HYBRID_EP_OVERLAP = dataclasses.replace(_MEGATRON_CORE, stack="megatron-core-hybrid-ep-overlap")
_MEGATRON_FULL_GRAPHS = dataclasses.replace(_MEGATRON_CORE, stack="megatron-core-full-graphs")
_FSDP = StackDefaults(stack="fsdp", zero_stage=3, sequence_parallel=True)
_FSDP_TRANSFORMER_ENGINE = dataclasses.replace(_FSDP, stack="fsdp-transformer-engine")
_AUTOMODEL = StackDefaults(stack="nemo-automodel", zero_stage=3)
_AUTOMODEL_BENCHMARK = dataclasses.replace(_AUTOMODEL, stack="nemo-automodel-benchmark")
# Its presets do not compile (train_configs/llama2_13b.toml: compile = false); its page names what it switches on.
_FSDP_EAGER = dataclasses.replace(_FSDP, stack="fsdp-eager")
_TORCHTITAN_DEEPEP = dataclasses.replace(_FSDP, stack="torchtitan-deepep-benchmark")
_KEMPNER_FORGE = dataclasses.replace(_FSDP, stack="kempner-forge")
_KEMPNER_FORGE_EAGER = dataclasses.replace(_FSDP, stack="kempner-forge-eager")
# Its recipes keep weights, gradients and moments in bf16 (dtype: bf16).
_TORCHTUNE = dataclasses.replace(_FSDP, sixteen_bit_states=True)
_TORCHTUNE_EAGER = dataclasses.replace(_FSDP_EAGER, sixteen_bit_states=True)
_COMPOSER = StackDefaults(stack="fsdp-composer", zero_stage=3)
_COMPOSER_2023 = StackDefaults(stack="fsdp-composer-2023", zero_stage=3)
_COMPOSER_TRITON = StackDefaults(stack="fsdp-composer-triton", zero_stage=3)
_MEGATRON_DEEPSPEED = dataclasses.replace(_MEGATRON_2021, stack="megatron-deepspeed", zero_stage=1)
_MEGATRON_DEEPSPEED_BLOCKING = dataclasses.replace(_MEGATRON_DEEPSPEED, stack="megatron-deepspeed-blocking")
_LITGPT = StackDefaults(stack="litgpt", zero_stage=3, zero_is_known=True, sixteen_bit_states=True)
_TINYLLAMA = dataclasses.replace(_LITGPT, stack="tinyllama")
_LITGPT_2023 = dataclasses.replace(_LITGPT, stack="litgpt-2023")
_HUGGING_FACE_2024 = StackDefaults(stack="hf-trainer-2024", zero_is_known=False, sixteen_bit_states=True)
_HUGGING_FACE = dataclasses.replace(_HUGGING_FACE_2024, stack="hf-trainer")
_HUGGING_FACE_LIGER = dataclasses.replace(_HUGGING_FACE, stack="hf-trainer-liger")
_HUGGING_FACE_COMPILED = dataclasses.replace(_HUGGING_FACE, stack="hf-trainer-compiled")
_UNSLOTH = dataclasses.replace(_HUGGING_FACE_2024, stack="unsloth")
_VECTORLM = dataclasses.replace(_HUGGING_FACE_2024, stack="hf-fsdp")
_TRAINER_FSDP = dataclasses.replace(_HUGGING_FACE_2024, stack="hf-trainer-fsdp")
_FMS_ACCELERATION = dataclasses.replace(_HUGGING_FACE_2024, stack="fms-acceleration")
# Models whose norms are spelled out in Python, under FSDP1 without torch.compile, as Hugging Face's (IBM's fms-fsdp:
# fms/modules/layernorm.py of foundation-model-stack, use_torch_compile=False in its scripts/train.sh).
_PLAIN_FSDP1 = StackDefaults(stack="hf-fsdp", zero_stage=3)
_PYTORCH = StackDefaults(stack="pytorch")
_PYTORCH_AUTOCAST = dataclasses.replace(_PYTORCH, stack="pytorch-autocast")
_NANOTRON = StackDefaults(stack="nanotron", tensor_parallel_overlap=True, overlap_param_gather=False)
_XLA = StackDefaults(stack="alpa", precision="fp16", overlap_grad_reduce=False, overlap_param_gather=False)
# Alpa's search prefers reduce-scatter to all-reduce, which shards the optimizer step (its auto_sharding options).
_ALPA_AUTO = dataclasses.replace(_XLA, zero_stage=2)
_PAXML = StackDefaults(stack="paxml")
_PAXML_2023 = StackDefaults(stack="paxml-2023")
_PAXML_XLA = StackDefaults(stack="paxml-xla")
_INTERNLM = StackDefaults(stack="internlm", zero_stage=1)
_PADDLE = StackDefaults(stack="paddle", overlap_grad_reduce=False, overlap_param_gather=False)
# hidden_dropout_prob 0.1 of FlagPerf's GPT-3 (training/benchmarks/gpt3_6.7B/paddle/config/_base.py); Llama has none.
_PADDLE_GPT = dataclasses.replace(_PADDLE, dropout=True)
_PADDLE_PLAIN_NORM = dataclasses.replace(_PADDLE, stack="paddle-plain-norm")

RL = "reinforcement learning: generation is part of the step"
UNKNOWN_FRAMEWORK = "framework not stated or unknown"
_NO_STACK = "no stack model for"
# Megatron-Bridge's workload presets set moe_a2a_overlap for this model on H100 in every release, and for no other of
# its tables; the runs that drop tokens are older than the presets.
_OVERLAPS_EXPERTS = re.compile(r"qwen3[_-]235b(?!.*tokendrop)")
_CAPTURED = (("deepseek", "gb[23]00", "26.06"), ("qwen3.30b", "gb200", "26.06"), ("qwen3.235b", "b200", "26.06.01"))
_LARGE_SCALE = 128  # GPUs of "new benchmarks for large scale pretraining" (mosaicml/llm-foundry, pull request 838)
_EXPERTS_IN_A_LOOP = re.compile(r"mixtral|moe|deepseek[ -_]?v[23]")
# First match wins. Patterns see "framework | source" in lower case. A text instead of defaults: the reason.
_RULES: tuple[tuple[re.Pattern[str], StackDefaults | str], ...] = tuple(
    (re.compile(pattern), found)
    for pattern, found in (
        (r"\bverl\b|grpo|openrlhf|\brlhf?\b", RL),
        (r"nnscaler|hai-llm|dualpipe|zero-infinity|zero-offload|metaseq", _NO_STACK),
        (r"maxtext|pathways|t5x|\bpax\b|llmboost", _NO_STACK),
        (r"^megascale", "the system changes the model (parallel block, sliding window): dimensions do not describe it"),
        (r"megascale", _MEGATRON_LM),  # its Megatron-LM baseline, with flash attention 2
        (r"^[^|]*zero-3.*sc21", _DEEPSPEED_2021),
        (r"nanotron|picotron", _NANOTRON),
        (r"^pytorch eager", _PYTORCH),
        (r"^torchtune \(eager", _TORCHTUNE_EAGER),
        (r"^torchtune", _TORCHTUNE),
        (r"^hugging face model code under fsdp \(fms-hf-tuning", _TRAINER_FSDP),
        (r"^hugging face model code under fsdp", _VECTORLM),
        (r"^automodel", _AUTOMODEL),
        (r"^torchtitan with deepep", _TORCHTITAN_DEEPEP),
        (r"^kempnerforge[^|]*eager", _KEMPNER_FORGE_EAGER),
        (r"^kempnerforge", _KEMPNER_FORGE),
        (r"^megatron's torch fsdp2", _FSDP_TRANSFORMER_ENGINE),
        (r"torchtitan|fsdp2", _FSDP),
        (r"fsdp1", _PLAIN_FSDP1),
        (r"llm-foundry \(may 2023|^composer \(torch 2\.0", _COMPOSER_2023),
        (r"composer|llm-foundry|mosaicml", _COMPOSER),
        (r"^internlm", _INTERNLM),
        (r"paddle", _PADDLE),
        (r"^paxml \(xla alone\)", _PAXML_XLA),
        (r"paxml 23\.", _PAXML_2023),
        (r"paxml", _PAXML),
        (r"deepspeed \+ megatron gpt-2|deepspeed moe", _DEEPSPEED_2022),
        # Aquila2's scripts ask for apex's fused RMSNorm (--apply-layernorm-rms), which is older than --normalization.
        (r"^flagscale \(megatron-lm\) ed55532", _MEGATRON_2023),
        (r"^flagscale \(megatron-lm\)", _MEGATRON_2023_NORMS),
        (r"^megatron-core 0\.6|megatron-lm 240405", _MEGATRON_2024),
        (r"^megatron-lm of 2023", _MEGATRON_2023),
        (r"megatron-core with hybridep in graphs of whole iterations", _MEGATRON_FULL_GRAPHS),
        (r"megatron-core with (?:deepep|hybridep) under another micro-batch", _MEGATRON_HYBRID_EP_OVERLAP),
        (r"megatron-core with (?:deepep|hybridep)", _MEGATRON_HYBRID_EP),
        (r"^megatron-core \(primus", _MEGATRON_16BIT_WEIGHTS),
        (r"megatron-bridge|nemo|megatron-core|megatron core|flagscale|pai-megatron|\(core\)|dgxc", _MEGATRON_CORE),
        (r"zb-1p|zb-2p|zb-v|1f1b", _MEGATRON_2021),
        (r"^alpa auto", _ALPA_AUTO),
        (r"^alpa|parax|/xla", _XLA),
        (r"megatron-llama|4d parallelism", _MEGATRON_CORE),
        # The Trainer's Ulysses needs transformers 5 (huggingface/blog, ulysses-sp.md, Requirements).
        (r"^deepspeed.*sfttrainer.*ulysses", _DEEPSPEED),
        (r"ulysses", _DEEPSPEED_2024),
        (r"deepspeed azure|deepspeed 0\.[0-9]\b", _DEEPSPEED_2022),
        (r"bigscience|mt-nlg|megatron\+deepspeed", _MEGATRON_DEEPSPEED),
        (r"megatron|gpt-neox|3d parallelism|turing|mt-nlg|vtrain|bigscience", _MEGATRON_2021),
        (r"litgpt resource-tables", _LITGPT_2023),
        (r"^lit-gpt \| tinyllama", _TINYLLAMA),
        (r"litgpt|lit-gpt", _LITGPT),
        (r"vectorlm", _VECTORLM),
        (r"^transformers trainer with torch\.compile", _HUGGING_FACE_COMPILED),
        (r"^transformers trainer|^peft 0\.(1[2-9]|[2-9][0-9])", _HUGGING_FACE),
        (r"unsloth", _UNSLOTH),
        (r"peft|ms-swift|transformers|\btrl\b|axolotl", _HUGGING_FACE_2024),
        (r"xtuner", _XTUNER),
        (r"deepspeed|colossal|gemini", _DEEPSPEED_2024),
        (r"fsdp", _FSDP),
        (r"mlperf.*", _MEGATRON_CORE),  # NVIDIA's and AMD's containers hold Megatron-Core
    )
)


def defaults_of(row: Row) -> StackDefaults:
    """The stack the row ran on.

    Raises:
        CannotScore: If no stack of ours describes it.
    """
    framework, source = row.text("framework").lower(), row.text("source").lower()
    if row.text("task").lower().startswith("rl"):
        raise CannotScore(RL)
    for pattern, found in _RULES:
        if pattern.search(f"{framework} | {source}"):
            if found in (_DEEPSPEED, _DEEPSPEED_2024, _XTUNER) and _EXPERTS_IN_A_LOOP.search(
                row.text("model").lower() + row.text("notes").lower()
            ):
                raise CannotScore(
                    "experts of Hugging Face model code run one by one: host time of DeepSpeed per module not modelled"
                )
            if isinstance(found, str):
                raise CannotScore(f"{found} {row.text('framework')[:40]!r}" if found == _NO_STACK else found)
            return _variant(row, found)
    raise CannotScore(f"{UNKNOWN_FRAMEWORK}: {row.text('framework')[:40]!r}")


def _variant(row: Row, found: StackDefaults) -> StackDefaults:
    """What a row's model, notes or era make of a stack."""
    return next((variant for stack, applies, variant in _VARIANTS if found is stack and applies(row)), found)


def _overlaps_experts(row: Row) -> bool:
    """Whether the recipe hides expert all-to-all under another micro-batch."""
    return (
        "megatron-bridge" in row.text("source").lower()
        and "h100" in row.text("gpu").lower()
        and _OVERLAPS_EXPERTS.search(row.text("model").lower()) is not None
    )


def _drops_tokens(row: Row) -> bool:
    """Whether experts take a fixed number of tokens.

    Megatron-Bridge's tables say so in the model's name. dgxc-benchmarking sets a capacity factor of 1 and pads to it:
    in its grok1/grok1_314b.yaml, and by the MegatronTokenDropCallback of pretrain_grok1_314b.py and
    pretrain_deepseek_v3.py (NVIDIA/NeMo, scripts/performance/llm), which it runs from v25.05 on.
    """
    model = row.text("model").lower()
    published = "dgxc" in row.text("source").lower() and re.search("grok|deepseek", model) is not None
    return published or "tokendrop" in model


def _exchanges_by_own_kernels(row: Row) -> bool:
    """Whether tokens reach their experts by kernels made for it.

    Megatron-Bridge's workload presets set moe_flex_dispatcher_backend to hybridep for all models with experts on GB200
    and GB300, and for DeepSeek-V3 everywhere (scripts/performance/configs).
    """
    model = row.text("model").lower()
    grace = re.search("gb[23]00", row.text("gpu").lower()) is not None
    return "megatron-bridge" in row.text("source").lower() and (
        "deepseek" in model or (grace and re.search(r"qwen3.*a[0-9]+b", model) is not None)
    )


def _blocks_on_launches(row: Row) -> bool:
    """Whether the host waited for every kernel.

    BLOOM's scripts say so ("do not remove or the training will hang"), and its chronicles from the section that follows
    the runs of February 17 on: without, 200B parameters on 320 GPUs "always hang"
    (bigscience, train/tr11-176B-ml/chronicles-prequel.md, "dealing with JZ hanging on the large model").
    """
    source = row.text("source")
    return "BLOOM-176B" in source or ("tr11" in source and "date 02-17" not in row.text("notes"))


def _captures_iterations(row: Row) -> bool:
    """Whether whole iterations of a mixture of experts are one CUDA graph.

    Megatron-Bridge's workload presets set cuda_graph_impl to full_iteration, moe_flex_dispatcher_backend to hybridep
    and moe_a2a_overlap in MXFP8: from release 26.06 on for DeepSeek-V3 on GB200 and GB300 and for Qwen3-30B on GB200,
    from 26.06.01 on for Qwen3-235B on B200 (scripts/performance/configs of tags v0.4.2, v0.5.0 and v0.5.1).
    """
    released = re.search(r"\b(\d\d\.\d\d(?:\.\d\d)?) NeMo Container", row.text("notes"))
    if released is None or row.text("precision").lower() != "mxfp8":
        return False
    model, gpu = row.text("model").lower(), row.text("gpu").lower()
    return any(
        re.search(models, model) is not None and re.fullmatch(gpus, gpu) is not None and released.group(1) >= since
        for models, gpus, since in _CAPTURED
    )


def _runs_flash_attention_2(row: Row) -> bool:
    """Whether Composer ran FlashAttention-2 for a row of llm-foundry's current table.

    That is said of the runs of January 2024, on 128 H100 and more (pull request 838). For all others ``sweep.sh``
    leaves attention to ``submit_benchmarks.py``, whose ``--attn_impl`` is ``triton`` until pull request 1041 of March
    2024: in torch 1.13, with ``PURE``, and in the nightly build of 2.1 (pull request 543, its review).
    """
    return "h100" in row.text("gpu").lower() and (row.integer("num_gpus") or 0) >= _LARGE_SCALE


def _notes(text: str) -> Callable[[Row], bool]:
    return lambda row: text in row.text("notes")


# First match wins.
_VARIANTS: tuple[tuple[StackDefaults, Callable[[Row], bool], StackDefaults], ...] = (
    (_PADDLE, lambda row: "gpt" in row.text("model").lower(), _PADDLE_GPT),
    (_PADDLE, _notes("use_fused_rms_norm=False"), _PADDLE_PLAIN_NORM),
    (_COMPOSER, _runs_flash_attention_2, _COMPOSER),
    (_COMPOSER, _notes("mixed_precision=PURE"), _COMPOSER_2023),
    (_COMPOSER, lambda _row: True, _COMPOSER_TRITON),
    (_AUTOMODEL, _notes("fake_balanced_gate"), _AUTOMODEL_BENCHMARK),
    (_HUGGING_FACE_2024, _notes("DeepSpeed ZeRO-2 for its fp16 loss scaling"), _DEEPSPEED_GPTQ),
    (_DEEPSPEED, _notes("Liger kernels"), _DEEPSPEED_LIGER),
    (_DEEPSPEED_2024, _notes("fused kernels for norm"), _DEEPSPEED_LIGER),
    (_HUGGING_FACE, _notes("Liger kernels"), _HUGGING_FACE_LIGER),
    (_PYTORCH, lambda row: "autocast" in row.text("precision"), _PYTORCH_AUTOCAST),
    (_HUGGING_FACE, _notes("fused kernels for norm"), _FMS_ACCELERATION),
    (_TRAINER_FSDP, _notes("fused kernels for norm"), _FMS_ACCELERATION),
    (_FSDP, _notes("no extra optimisations listed"), _FSDP_EAGER),
    (_MEGATRON_CORE, _overlaps_experts, _MEGATRON_EP_OVERLAP),
    (_MEGATRON_CORE, _drops_tokens, _MEGATRON_TOKEN_DROP),
    (_MEGATRON_CORE, _captures_iterations, _MEGATRON_FULL_GRAPHS),
    (_MEGATRON_CORE, _exchanges_by_own_kernels, _MEGATRON_HYBRID_EP),
    (_MEGATRON_DEEPSPEED, _blocks_on_launches, _MEGATRON_DEEPSPEED_BLOCKING),
    (_MEGATRON_2021, lambda row: row.flag("flash_attention") is True, _MEGATRON_CORE),
)


def usual_defaults(name: str) -> StackDefaults:
    """What a stack does by default, as the first rule that leads to it has it."""
    found = [*(found for _, found in _RULES if isinstance(found, StackDefaults)), *(each[2] for each in _VARIANTS)]
    return next((each for each in found if each.stack == name), StackDefaults(stack=name))
