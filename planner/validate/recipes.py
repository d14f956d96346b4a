"""What a publisher's own recipes set where its tables print nothing: recomputation and interleaving.

NVIDIA publishes the scripts of its tables. None of them recomputes a dense model:

- NeMo docs: the scripts and configurations of NeMo 24.07 (NVIDIA/NeMo-Framework-Launcher: examples/training/*/h100,
  examples/peft/llama/h100; launcher_scripts/conf/training/{gpt3,llama,nemotron}, conf/peft/llama/sft.yaml) have
  ``activations_checkpoint_granularity: null`` or no layers of it.
- dgxc-benchmarking: NeMo's scripts/performance/recommended_model_configs have ``recompute_layers`` 0, and so has
  conf/training/grok; deepseek_v3/pretraining/launch.sh recomputes ``mla_up_proj`` on H100, ``core_attn`` on GB200.
- MLPerf, LoRA in NVIDIA's container (its settings name ``FP8_DPA``): systems that print it, and NeMo's
  scripts/performance/llm/mlperf_lora_llama2_70b.py, recompute nothing.
- Megatron-Bridge: its workload presets recompute parts of layers of DeepSeek's models, and offload some layers'
  activations where they use FSDP. The tables print neither.
"""

import re

from costmodels.plan import Recompute, RecomputeModule
from planner.validate.reader import Row
from profiles.model import ModelSpec

PRESET_RECOMPUTE = "recomputation as in its publisher's presets"
MODULES_RECOMPUTED = "recomputation or offloading of parts of a layer, as in its publisher's presets"
PRESET_INTERLEAVING = "interleaving as in its publisher's presets"

# Chunks per stage of NeMo docs' rows. Later revisions of the page print them for pre-training, the scripts of the
# fine-tuning rows (13b_1node.sh, 70b_2node.sh) set the same; that of LoRA (70b_1node_lora.sh) sets none.
_NEMO_CHUNKS = {"llama2-13b": 10, "llama2-70b": 20, "llama3-70b": 5, "nemotron-340b": 12}


def preset_recompute(row: Row, model: ModelSpec) -> tuple[Recompute, RecomputeModule, str] | None:
    """What is recomputed, which modules of a layer if selective, and the assumption; None if no recipe is known."""
    source, paxml = row.text("source").lower(), "paxml" in row.text("framework").lower()
    lora = "mlperf" in source and "FP8_DPA" in row.text("notes") and row.text("task").lower() == "lora"
    if not lora and (paxml or not re.search("megatron-bridge|nemo docs|dgxc", source)):
        return None
    if model.latent_attention is not None:
        # Recomputing the core comes nearest to what Megatron-Bridge's presets repeat.
        projections = "dgxc" in source and "h100" in row.text("gpu").lower()
        modules = RecomputeModule.MLA_UP_PROJ if projections else RecomputeModule.CORE_ATTN
        return Recompute.SELECTIVE, modules, f"{MODULES_RECOMPUTED}: selective"
    whole = not re.search(r"Megatron-FSDP|use_megatron_fsdp=True", row.text("notes"))
    note = f"{PRESET_RECOMPUTE if whole else MODULES_RECOMPUTED}: none"
    return Recompute.NONE, RecomputeModule.CORE_ATTN, note


def preset_chunks(row: Row, task: str) -> int | None:
    """Chunks per stage of a row that does not print them; None if no recipe is known."""
    if "nemo docs" not in row.text("source").lower():
        return None
    return 1 if task == "lora" else _NEMO_CHUNKS.get(row.text("model").lower())
