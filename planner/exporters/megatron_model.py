"""The shape of a model in Megatron-LM's arguments, and what of a shape its scripts cannot say.

Those are ``pretrain_gpt.py`` and, for models whose layers are a mixer or an MLP alone, ``pretrain_hybrid.py``.
"""

from collections.abc import Iterable
from itertools import accumulate, groupby, pairwise

from costmodels.plan import ContextKind, ExecutionPlan, Recompute
from planner.exporters.exported import Gap, end_checks, gaps
from planner.results import Request
from planner.rules.indexer import shares_choices
from planner.rules.modules import module_names
from profiles.linear_attention import DELTA_NET, MAMBA2
from profiles.model import ModelSpec

# Of Transformer Engine: flash-attn of the version that is installed, or cuDNN's fused attention.
_BACKENDS = {"": "auto", "flash_2": "flash", "flash_3": "flash", "cudnn": "fused"}

_TAPS = 4  # d_conv of MambaMixer (megatron/core/ssm/mamba_mixer.py)
# Of ``--cp-comm-type``.
CONTEXT_NAMES = {ContextKind.RING: "p2p", ContextKind.ALL_GATHER: "all_gather", ContextKind.ULYSSES: "a2a"}


def recomputation(plan: ExecutionPlan) -> dict[str, str | int | tuple[str, ...]]:
    """Of Megatron's settings of recomputation those that are set, ``recompute_`` left out.

    ``block`` counts the layers of every virtual stage.
    """
    if plan.recompute == Recompute.NONE:
        return {}
    if plan.recompute == Recompute.SELECTIVE:
        return {"granularity": "selective", "modules": module_names(plan.recompute_modules)}
    if plan.recompute == Recompute.FULL:
        return {"granularity": "full", "method": "uniform", "num_layers": 1}
    return {"granularity": "full", "method": "block", "num_layers": plan.recompute_layers // plan.virtual_stages}


def shape_options(model: ModelSpec) -> list[list[str]]:
    """What a model is, whatever plan and job: a recipe of the model knows it."""
    positions = "learned_absolute" if model.learned_positions else "none" if model.layer_pattern else "rope"
    options = [
        *([] if model.layer_pattern else [["--num-layers", str(model.num_layers)]]),  # the pattern says how many
        ["--hidden-size", str(model.hidden_size)],
        ["--ffn-hidden-size", str(model.ffn_hidden_size)],
        ["--num-attention-heads", str(model.num_attention_heads)],
        ["--position-embedding-type", positions],
        ["--normalization", "RMSNorm" if model.rms_norm else "LayerNorm"],
    ]
    flags = {
        "--swiglu": model.gated_mlp,
        "--squared-relu": bool(model.layer_pattern),  # of Nemotron-H, whose code alone has such patterns
        "--untie-embeddings-and-output-weights": not model.tie_word_embeddings,
        "--disable-bias-linear": not model.mlp_bias,
        "--add-qkv-bias": model.qkv_bias and not model.mlp_bias,
        # With latent attention, the norms of what its projections are made from (get_gpt_layer_with_transformer_
        # engine_spec of megatron/core/models/gpt/gpt_layer_specs.py).
        "--qk-layernorm": model.qk_norm or model.latent_attention is not None,
        "--attention-output-gate": model.attention_output_gate,
    }
    options += [[name] for name, on in flags.items() if on]
    if model.attention_sinks:
        options.append(["--softmax-type", "learnable"])
    mixers = _attention(model) + _linear_attention(model) + _sparse_attention(model)
    return options + _windows(model) + mixers + _experts(model)


def run_options(plan: ExecutionPlan, request: Request) -> list[list[str]]:
    """How a model is run: lengths, kernels, dropout, and which dispatcher takes tokens to experts."""
    model, job, stack = request.model, request.job, request.stack
    longest = model.learned_positions or max(model.max_sequence_length, job.sequence_length)
    dropout = "0.1" if job.dropout else "0"
    options = [
        ["--seq-length", str(job.sequence_length)],
        ["--max-position-embeddings", str(longest)],
        ["--attention-backend", "unfused" if job.attention == "unfused" else _BACKENDS[job.attention_library]],
        ["--attention-dropout", dropout, "--hidden-dropout", dropout],
    ]
    if model.moe is not None:
        dispatcher = "flex" if stack.sends_tokens_once and plan.expert_parallel > 1 else "alltoall"
        options.append(["--moe-token-dispatcher-type", dispatcher])
        options += [["--moe-grouped-gemm"]] if stack.grouped_experts else []
    return options


def _windows(model: ModelSpec) -> list[list[str]]:
    """Windows of all layers, or of all but every n-th.

    Source:
        megatron/core/transformer/utils.py, is_layer_window_attention, which counts layers from 1:
        ``layer_number % window_attn_skip_freq != 0``; a window holds so many tokens before the one that looks.
    """
    if not model.sliding_window or not _windows_known(model):
        return []
    options = [["--window-size", f"{model.sliding_window - 1},0"]]
    if model.windowed_layers < model.num_layers:
        options.append(["--window-attn-skip-freq", str(model.full_attention_every)])
    return options


def _attention(model: ModelSpec) -> list[list[str]]:
    latent = model.latent_attention
    if latent is None:
        options = [["--kv-channels", str(model.head_dim)]]
        if model.num_key_value_heads != model.num_attention_heads:
            options.append(["--group-query-attention", "--num-query-groups", str(model.num_key_value_heads)])
        return options
    return [
        ["--multi-latent-attention"],
        *([["--q-lora-rank", str(latent.q_lora_rank)]] if latent.q_lora_rank else []),
        ["--kv-lora-rank", str(latent.kv_lora_rank)],
        ["--qk-head-dim", str(latent.qk_nope_head_dim)],
        ["--qk-pos-emb-head-dim", str(latent.qk_rope_head_dim)],
        ["--v-head-dim", str(latent.v_head_dim)],
    ]


def _linear_attention(model: ModelSpec) -> list[list[str]]:
    """Gated DeltaNet in all layers but every n-th, as a model of the catalogue has it (megatron-core 0.19).

    Or Mamba-2 of a hybrid stack, whose layers a pattern names.
    """
    linear = model.linear_attention
    if linear is None:
        return []
    if model.layer_pattern:
        return [
            ["--spec", "megatron.core.models.hybrid.hybrid_layer_specs", "hybrid_stack_spec"],
            ["--mamba-num-heads", str(linear.num_value_heads)],
            ["--mamba-head-dim", str(linear.value_head_dim)],
            ["--mamba-state-dim", str(linear.key_head_dim)],
            ["--mamba-num-groups", str(linear.num_key_heads)],
        ]
    return [
        ["--experimental-attention-variant", linear.kind],
        ["--linear-attention-freq", str(model.num_layers // model.full_attention_layers)],
        ["--linear-num-key-heads", str(linear.num_key_heads)],
        ["--linear-num-value-heads", str(linear.num_value_heads)],
        ["--linear-key-head-dim", str(linear.key_head_dim)],
        ["--linear-value-head-dim", str(linear.value_head_dim)],
        ["--linear-conv-kernel-dim", str(linear.conv_kernel_dim)],
    ]


def _sparse_attention(model: ModelSpec) -> list[list[str]]:
    """An indexer in every layer, with cuDNN's kernels and FlashMLA's, and without a loss of its own.

    Source:
        megatron-core 0.19.2, transformer_config.py (``dsa_``) and dsa_kernels.py: fused only where
        ``dsa_kernel_backend`` says so. RoPE fusion is refused.
    """
    indexer = model.indexer
    if indexer is None:
        return []
    return [
        ["--experimental-attention-variant", "dsa"],
        ["--dsa-indexer-n-heads", str(indexer.num_heads)],
        ["--dsa-indexer-head-dim", str(indexer.head_dim)],
        ["--dsa-indexer-topk", str(indexer.chosen_keys)],
        ["--dsa-kernel-backend", "cudnn"],
        ["--no-rope-fusion"],
    ]


def _experts(model: ModelSpec) -> list[list[str]]:
    moe = model.moe
    if moe is None:
        return []
    options = [
        ["--num-experts", str(moe.num_experts)],
        ["--moe-router-topk", str(moe.experts_per_token)],
        ["--moe-ffn-hidden-size", str(moe.ffn_hidden_size)],
    ]
    if moe.router_groups > 1:
        options.append(["--moe-router-num-groups", str(moe.router_groups)])
        options.append(["--moe-router-group-topk", str(moe.groups_per_token)])
    if moe.latent_size:
        options.append(["--moe-latent-size", str(moe.latent_size)])
    if model.num_moe_layers < model.num_layers and not model.layer_pattern:
        runs = [f"[{int(sparse)}]*{len(list(layers))}" for sparse, layers in groupby(model.layer_is_moe)]
        options.append(["--moe-layer-freq", "(" + "+".join(runs) + ")"])
    if moe.shared_ffn_hidden_size:
        options.append(["--moe-shared-expert-intermediate-size", str(moe.shared_ffn_hidden_size)])
        if moe.shared_expert_gate:
            options.append(["--moe-shared-expert-gate"])
    return options


def hybrid_pattern(model: ModelSpec, chunks: Iterable[int]) -> str:
    """The layers of a model of halves, with a ``|`` between the chunks of its pipeline.

    Args:
        model: Its pattern.
        chunks: Layers of every chunk, those of all ranks' first chunks first.

    Source:
        megatron/core/models/hybrid/hybrid_layer_allocation.py, ``select_pipeline_segment``.
    """
    ends = [0, *accumulate(chunks)]
    return "|".join(model.layer_pattern[first:last] for first, last in pairwise(ends))


def _windows_known(model: ModelSpec) -> bool:
    """Whether it is known which layers have the window, of as many as have one."""
    layers, every = model.num_layers, model.full_attention_every
    return model.windowed_layers == layers or (every > 1 and model.windowed_layers == layers - layers // every)


def model_gaps(request: Request) -> tuple[Gap, ...]:
    """What ``pretrain_gpt.py`` cannot build, nor ``pretrain_hybrid.py``."""
    model = request.model
    linear, halves = model.linear_attention, bool(model.layer_pattern)
    ragged = linear is not None and not halves and model.num_layers % model.full_attention_layers > 0
    other = linear is not None and linear.kind != (MAMBA2 if halves else DELTA_NET)
    taps = halves and linear is not None and linear.conv_kernel_dim != _TAPS
    norms = 1 if halves else 2
    some = bool(model.sliding_window) and not _windows_known(model)
    apart = model.windowed_attention is not None
    shared = shares_choices(model)
    biases = (model.qkv_bias, model.attention_out_bias, model.mlp_bias)
    plain = biases in ((True, True, True), (True, False, False), (False, False, False))
    return gaps(
        (not plain, "model.attention_out_bias", "all linear layers have biases, those of q, k and v, or none", ""),
        (not model.rms_norm and not model.norm_bias, "model.norm_bias", "a LayerNorm has a bias", ""),
        (
            model.norms_per_layer != norms,
            "model.norms_per_layer",
            f"a layer has {norms} norms; got {model.norms_per_layer}",
            "",
        ),
        (model.attention_softcap, "model.attention_softcap", "attention caps no logits", ""),
        (model.qk_norm_all_heads, "model.qk_norm_all_heads", "norms of queries and keys span one head", ""),
        (model.parallel_residual, "model.parallel_residual", "the MLP follows attention", ""),
        *end_checks(model),
        (other, "model.linear_attention", "linear attention is Gated DeltaNet", ""),
        (taps, "model.linear_attention.conv_kernel_dim", f"Mamba-2's convolution reaches over {_TAPS} tokens", ""),
        (ragged, "model.linear_attention", "which layers attend in full is not known here, if not every n-th", ""),
        (shared, "model.indexer", "which layers take the choice of one before is not known here", ""),
        (some, "model.windowed_layers", f"which {model.windowed_layers} layers have a window is not known here", ""),
        (apart, "model.windowed_attention", "layers with a window have the heads of the others", ""),
        (model.keys_are_values, "model.keys_are_values", "values have a projection of their own", ""),
        (model.value_norm, "model.value_norm", "values have no norm", ""),
        (bool(model.value_head_dim), "model.value_head_dim", "values are as wide as keys", ""),
        (model.head_gates, "model.head_gates", "gates are of every value, not of heads", ""),
    )
