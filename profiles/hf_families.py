"""What each Hugging Face model family fixes in code rather than in its config.json.

A config.json leaves out what the family's modelling code decides (biases, norms, gating) and what
its configuration class defaults. This table states both per ``model_type``; values are those of the
``transformers`` library (``src/transformers/models/<family>``) or of the remote code of the model
repository for families outside it. Each rule is ``(key, default)``: the key that decides when it is
present ("" for none, a leading "!" when it says the opposite), and what holds otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from profiles.linear_attention import DELTA_NET, KIMI_DELTA, LIGHTNING, MAMBA2

Rule = tuple[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Structure of one model family.

    Attributes:
        gated: Three MLP matrices.
        rms: RMSNorm rather than LayerNorm.
        norm_bias: LayerNorm has a bias.
        norms: Norms of width h per layer.
        tied: Head tied to the embedding when ``tie_word_embeddings`` is absent.
        qkv_bias / out_bias / mlp_bias / head_bias / qk_norm / parallel: Rules (see the module).
        qk_norm_all_heads: Query and key norms span all heads.
        embedding_norm: A norm follows the embedding.
        sinks: Learned attention sinks.
        softcap: Attention's logits are capped where ``attn_logit_softcapping`` is absent.
        router_bias: One number per expert beside the router's matrix, unless moe_router_enable_expert_bias says.
        shared_gate: The shared expert has a gate.
        positions_key: Key with the rows of the learned position embedding; "" for none.
        positions_offset: Rows on top of that (OPT keeps two).
        ffn_multiple: MLP width over h when no key gives it; 0 when a key must.
        ffn_divisor: What the given MLP width is divided by (Qwen counts both halves).
        key_value_heads: When no key gives them: 0 for as many as query heads, else this number.
        window: Which layers a sliding window applies to: ``none``, ``all`` (where the key is not
            null), ``qwen`` (switched by use_sliding_window), ``every:n`` (all but each n-th layer),
            ``apart:n`` (the same, and the n-th differ in their positions too), ``first:n`` (so, and the first has
            none either), ``after:n`` (all but the first and each n-th after it, which differ in positions),
            ``last:n`` (all but the last and each n-th before it, alike), or ``chunk`` (Llama 4).
        window_default: Window when the key is absent.
        linear: Kind of linear attention that some of its layers have; "" for none.
        indexer: An indexer chooses the keys that latent attention attends to.
        compressed: Attention over compressed keys, several residual streams and routers that look experts up.
        halves: A layer is a mixer or an MLP alone, by a pattern (``profiles.hf_pattern``).
        global_heads: Layers without a window have heads of their own, by keys that say ``global``.
        windowed_heads_times: Key/value heads of windowed layers over those of others where no key says how many.
        windowed_sinks: Windowed layers have sinks, unless ``add_swa_attention_sink_bias`` says otherwise.
        head_gates: Key that says that attention's output has a gate per head, as it does where the key is absent.
        value_norm: Values pass a norm without weights.
        experts: Layers have experts: rule; by default where there is a number of them.
        mlp_beside_experts: A dense MLP runs beside the experts, on norms of its own.
        output_gate: Queries bring a gate for the output of attention: rule.
        latent_key: Key with the width that experts work on, where that is not the residual stream's.
        dense_key: Key with the width of an MLP without experts, where it is not the usual one.
        defaults: Dimensions of the configuration class that its files really leave out.
    """

    gated: bool = True
    rms: bool = True
    norm_bias: bool = True
    norms: int = 2
    tied: bool = False
    qkv_bias: Rule = ("attention_bias", False)
    out_bias: Rule = ("attention_bias", False)
    mlp_bias: Rule = ("mlp_bias", False)
    head_bias: Rule = ("", False)
    qk_norm: Rule = ("", False)
    qk_norm_all_heads: bool = False
    parallel: Rule = ("", False)
    embedding_norm: bool = False
    sinks: bool = False
    softcap: bool = False
    router_bias: bool = False
    shared_gate: bool = False
    positions_key: str = ""
    positions_offset: int = 0
    ffn_multiple: int = 0
    ffn_divisor: int = 1
    key_value_heads: int = 0
    window: str = "none"
    window_default: int = 0
    linear: str = ""
    indexer: bool = False
    compressed: bool = False
    halves: bool = False
    global_heads: bool = False
    windowed_heads_times: int = 1
    windowed_sinks: bool = False
    head_gates: str = ""
    value_norm: bool = False
    experts: Rule = ("", True)
    mlp_beside_experts: bool = False
    output_gate: Rule = ("", False)
    latent_key: str = "moe_latent_size"
    dense_key: str = ""
    defaults: Mapping[str, int] = field(default_factory=dict)


_YES, _NO = ("", True), ("", False)
LLAMA = Family()
# GPT-2 and its line: LayerNorm, two matrices, biases everywhere.
_GPT = Family(
    gated=False, rms=False, tied=True, qkv_bias=_YES, out_bias=_YES, mlp_bias=_YES, ffn_multiple=4,
)  # fmt: skip
_MISTRAL = replace(LLAMA, key_value_heads=8, window="all", qkv_bias=_NO, out_bias=_NO, mlp_bias=_NO)
_QWEN2 = replace(LLAMA, qkv_bias=_YES, out_bias=_NO, mlp_bias=_NO, window="qwen")
_QWEN3 = replace(LLAMA, qk_norm=_YES, window="qwen", mlp_bias=_NO)
_DEEPSEEK = replace(LLAMA, mlp_bias=_NO)
_QWEN3_NEXT = replace(
    LLAMA, qk_norm=_YES, mlp_bias=_NO, shared_gate=True, linear=DELTA_NET, output_gate=("attn_output_gate", True),
    defaults={"head_dim": 256},
)  # fmt: skip
_GEMMA = replace(LLAMA, tied=True, mlp_bias=_NO)
_COHERE = replace(
    LLAMA, rms=False, norm_bias=False, norms=1, tied=True, parallel=_YES,
    qk_norm=("use_qk_norm", False), qk_norm_all_heads=True,
)  # fmt: skip
_OLMO2 = replace(LLAMA, mlp_bias=_NO, qk_norm=_YES, qk_norm_all_heads=True)
_HUNYUAN = replace(LLAMA, tied=True, mlp_bias=_NO, qk_norm=("use_qk_norm", True))
_GLM = replace(LLAMA, qkv_bias=("attention_bias", True), out_bias=_NO, mlp_bias=_NO)
_ERNIE = replace(
    LLAMA, tied=True, qkv_bias=("use_bias", False), out_bias=("use_bias", False), mlp_bias=("use_bias", False)
)
_EXAONE4 = replace(LLAMA, qkv_bias=_NO, out_bias=_NO, mlp_bias=_NO, qk_norm=_YES, window="apart:4", window_default=4096)
_MUSE = replace(LLAMA, norms=4, mlp_bias=_NO, output_gate=_YES, window="last:4", window_default=2048)
# Gemma3TextConfig; the multimodal checkpoints write only what differs from it.
_GEMMA3_DEFAULTS = {
    "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 131072,
}  # fmt: skip

# Gemma4TextConfig and Gemma4UnifiedTextConfig. The last layer attends in full whatever the interval.
_GEMMA4_DEFAULTS = {**_GEMMA3_DEFAULTS, "vocab_size": 262144}
_GEMMA4 = replace(
    _GEMMA, norms=4, qk_norm=_YES, value_norm=True, global_heads=True, window="apart:6", window_default=512,
    experts=("enable_moe_block", False), mlp_beside_experts=True, router_bias=True, defaults=_GEMMA4_DEFAULTS,
)  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "llama": LLAMA,
    "Yi": LLAMA,
    "baichuan": LLAMA,
    "deepseek": LLAMA,
    "granite": LLAMA,
    "internlm": replace(LLAMA, qkv_bias=("bias", True), out_bias=("bias", True)),
    "internlm2": replace(LLAMA, qkv_bias=("bias", True), out_bias=("bias", True)),
    "internlm3": replace(
        LLAMA, qkv_bias=("qkv_bias", False), out_bias=("bias", False), mlp_bias=("bias", False), key_value_heads=2,
        defaults={"head_dim": 128},
    ),
    "smollm3": replace(LLAMA, tied=True, key_value_heads=4),
    "mistral": replace(_MISTRAL, window_default=4096),
    "ministral": replace(_MISTRAL, window_default=4096),
    "ministral3": _MISTRAL,
    "mixtral": _MISTRAL,
    "qwen": replace(_QWEN2, window="none", ffn_divisor=2),
    "qwen2": _QWEN2,
    "qwen2_moe": replace(_QWEN2, shared_gate=True, key_value_heads=16, qkv_bias=("qkv_bias", True)),
    "qwen3": replace(_QWEN3, defaults={"head_dim": 128}),
    "qwen3_moe": replace(_QWEN3, key_value_heads=4),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": replace(_DEEPSEEK, router_bias=True),
    "deepseek_v32": replace(_DEEPSEEK, router_bias=True, indexer=True),
    "deepseek_v4": replace(_DEEPSEEK, router_bias=True, key_value_heads=1, compressed=True, defaults={"head_dim": 512}),
    "glm_moe_dsa": replace(_DEEPSEEK, router_bias=True, indexer=True),
    "kimi_k2": replace(_DEEPSEEK, router_bias=True),
    "mistral4": _DEEPSEEK,
    "gemma": replace(_GEMMA, key_value_heads=16, defaults={"head_dim": 256}),
    "gemma2": replace(
        _GEMMA, norms=4, key_value_heads=4, window="every:2", window_default=4096, softcap=True,
        defaults={"head_dim": 256},
    ),
    "vaultgemma": replace(
        _GEMMA, key_value_heads=4, window="every:2", window_default=4096, softcap=True, defaults={"head_dim": 256}
    ),
    "gemma3_text": replace(
        _GEMMA, norms=4, qk_norm=_YES, window="every:6", window_default=4096, defaults=_GEMMA3_DEFAULTS
    ),
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": replace(
        _GEMMA4, window_default=1024, defaults=_GEMMA4_DEFAULTS | {"max_position_embeddings": 262144}
    ),
    "phi": replace(
        _GPT, tied=False, norms=1, parallel=_YES, head_bias=_YES, ffn_multiple=4, qk_norm=("qk_layernorm", False)
    ),
    "phi3": replace(LLAMA, qkv_bias=_NO, out_bias=_NO, mlp_bias=_NO, window="all"),
    "phimoe": replace(LLAMA, rms=False, key_value_heads=8, head_bias=("lm_head_bias", False), window="all"),
    "opt": replace(
        _GPT, qkv_bias=("enable_bias", True), out_bias=("enable_bias", True), mlp_bias=("enable_bias", True),
        ffn_multiple=0, positions_key="max_position_embeddings", positions_offset=2,
    ),
    "bloom": replace(_GPT, embedding_norm=True),
    "gpt_neox": replace(
        _GPT, tied=False, qkv_bias=("attention_bias", True), out_bias=("attention_bias", True),
        parallel=("use_parallel_residual", True), ffn_multiple=0,
    ),
    "gpt2": replace(_GPT, positions_key="n_positions"),
    "gpt_bigcode": replace(_GPT, positions_key="n_positions"),
    "gptj": replace(_GPT, tied=False, norms=1, parallel=_YES, qkv_bias=_NO, out_bias=_NO, head_bias=_YES),
    "mpt": replace(
        _GPT, qkv_bias=("!no_bias", False), out_bias=("!no_bias", False), mlp_bias=("!no_bias", False), norm_bias=False
    ),
    "falcon": replace(
        _GPT, qkv_bias=("bias", False), out_bias=("bias", False), mlp_bias=("bias", False),
        parallel=("parallel_attn", True),
    ),
    "starcoder2": replace(
        _GPT, qkv_bias=("use_bias", True), out_bias=("use_bias", True), mlp_bias=("use_bias", True),
        ffn_multiple=0, key_value_heads=2, window="all",
    ),
    "stablelm": replace(
        LLAMA, rms=False, qkv_bias=("use_qkv_bias", False), out_bias=_NO, mlp_bias=_NO,
        parallel=("use_parallel_residual", False), qk_norm=("qk_layernorm", False),
    ),
    "cohere": _COHERE,
    "cohere2": replace(_COHERE, window="every:4", window_default=4096),
    "llama4_text": replace(LLAMA, mlp_bias=_NO, key_value_heads=8, window="chunk", window_default=8192),
    "gpt_oss": replace(
        LLAMA, qkv_bias=("attention_bias", True), out_bias=("attention_bias", True), mlp_bias=_YES, sinks=True,
        router_bias=True, key_value_heads=8, window="every:2", window_default=128, defaults={"head_dim": 64},
    ),
    "chatglm": replace(LLAMA, qkv_bias=("add_qkv_bias", False), out_bias=_NO, mlp_bias=("add_bias_linear", False)),
    "glm": replace(_GLM, key_value_heads=2, defaults={"head_dim": 128}),
    "glm4": replace(_GLM, norms=4, key_value_heads=2, defaults={"head_dim": 128}),
    "glm4_moe": replace(
        _GLM, qkv_bias=("attention_bias", False), key_value_heads=8, router_bias=True, qk_norm=("use_qk_norm", False),
        defaults={"head_dim": 128},
    ),
    "glm4_moe_lite": replace(_DEEPSEEK, router_bias=True),
    "glm4v_text": replace(_GLM, norms=4, key_value_heads=2, qkv_bias=_YES),
    "minimax_m2": replace(
        LLAMA, qkv_bias=_NO, out_bias=_NO, mlp_bias=_NO, qk_norm=("use_qk_norm", True), qk_norm_all_heads=True,
        router_bias=True, key_value_heads=8, defaults={"head_dim": 128},
    ),
    "seed_oss": replace(
        LLAMA, qkv_bias=("attention_bias", True), out_bias=("attention_out_bias", False), key_value_heads=8,
        defaults={"head_dim": 128},
    ),
    "solar_open": replace(LLAMA, mlp_bias=_NO, router_bias=True, key_value_heads=8, defaults={"head_dim": 128}),
    "laguna": replace(LLAMA, mlp_bias=_NO, qk_norm=_YES, router_bias=True, key_value_heads=8, head_gates="gating"),
    "olmo2": _OLMO2,
    "olmo3": replace(_OLMO2, window="apart:4", window_default=4096),
    "olmoe": _OLMO2,
    "olmo_hybrid": replace(
        _OLMO2, linear=DELTA_NET,
        defaults={
            "linear_num_key_heads": 30, "linear_num_value_heads": 30, "linear_key_head_dim": 96,
            "linear_value_head_dim": 192,
        },
    ),
    "mimo_v2_flash": replace(
        LLAMA, mlp_bias=_NO, out_bias=_NO, router_bias=True, key_value_heads=4, window="first:6", window_default=128,
        windowed_heads_times=2, windowed_sinks=True,
        defaults={"head_dim": 192},
    ),
    "step3p5": replace(
        LLAMA, mlp_bias=_NO, qk_norm=_YES, router_bias=True, key_value_heads=8,
        head_gates="use_head_wise_attn_gate", defaults={"head_dim": 128},
    ),
    "apertus": replace(LLAMA, gated=False, mlp_bias=_NO, qk_norm=_YES),
    "hunyuan_v1_dense": _HUNYUAN,
    "hunyuan_v1_moe": _HUNYUAN,
    "hy_v3": replace(LLAMA, qk_norm=_YES, router_bias=True, key_value_heads=8, defaults={"head_dim": 128}),
    "nemotron": replace(LLAMA, gated=False, rms=False),
    "qwen3_next": replace(_QWEN3_NEXT, key_value_heads=2),
    "qwen3_5_text": replace(_QWEN3_NEXT, key_value_heads=4),
    "qwen3_5_moe_text": replace(_QWEN3_NEXT, key_value_heads=2),
    "kimi_linear": replace(_DEEPSEEK, router_bias=True, linear=KIMI_DELTA),
    "minimax": replace(LLAMA, qkv_bias=_NO, out_bias=_NO, mlp_bias=_NO, key_value_heads=8, linear=LIGHTNING),
    "granitemoehybrid": replace(LLAMA, mlp_bias=_NO, linear=MAMBA2, dense_key="shared_intermediate_size"),
    "nemotron_h": replace(
        LLAMA, gated=False, norms=1, mlp_bias=("mlp_bias", False), router_bias=True, key_value_heads=8, linear=MAMBA2,
        halves=True,
    ),
    "afmoe": replace(
        LLAMA, norms=4, qkv_bias=_NO, out_bias=_NO, mlp_bias=_NO, qk_norm=_YES, output_gate=_YES, router_bias=True,
        window="apart:4", window_default=1024, defaults={"head_dim": 128},
    ),
    "bailing_moe": replace(
        LLAMA, qkv_bias=("use_qkv_bias", False), out_bias=("use_bias", False), mlp_bias=_NO,
        qk_norm=("use_qk_norm", False),
    ),
    "ernie4_5": replace(_ERNIE, key_value_heads=2, defaults={"head_dim": 128}),
    "ernie4_5_moe": replace(_ERNIE, key_value_heads=4, router_bias=True),
    "exaone4": _EXAONE4,
    "exaone_moe": replace(_EXAONE4, router_bias=True),
    "dots1": replace(LLAMA, mlp_bias=_NO, qk_norm=_YES, router_bias=True),
    # allenai/Molmo-7B-D-0924, modeling_molmo.py: gate and up are one width; norms, where there are any, of all heads.
    "molmo": replace(
        LLAMA, qkv_bias=("qkv_bias", False), out_bias=_NO, mlp_bias=_NO, ffn_divisor=2,
        qk_norm=("attention_layer_norm", False), qk_norm_all_heads=True,
    ),
    "muse_glimmer_text": replace(_MUSE, key_value_heads=2, defaults={"head_dim": 128}),
    # MuseSparkTextDecoderLayer: three norms with weights, and a gate of the residual stream's width behind either half.
    # The two norms of its experts' width are left out.
    "muse_spark_text": replace(
        _MUSE, norms=5, router_bias=True, latent_key="moe_hidden_size", key_value_heads=16, defaults={"head_dim": 64}
    ),
    # BitNetDecoderLayer: one more norm behind attention; that within the MLP, of its width, is left out.
    "bitnet": replace(LLAMA, norms=3, mlp_bias=_NO, key_value_heads=5),
    # ModernBertDecoderForCausalLM; the square matrix before its head is left out.
    "modernbert-decoder": replace(
        LLAMA, rms=False, norm_bias=False, tied=True, embedding_norm=True, head_bias=("decoder_bias", True),
        window="after:3", window_default=64,
    ),
}  # fmt: skip

# Families named differently at the top of a multimodal or renamed configuration.
SYNONYMS: Mapping[str, str] = {
    "gemma3": "gemma3_text", "gemma4": "gemma4_text", "gemma4_unified": "gemma4_unified_text",
    "llama4": "llama4_text", "RefinedWeb": "falcon", "RefinedWebModel": "falcon",
    "phi-msft": "phi", "InternLM2ForCausalLM": "internlm2", "BaichuanForCausalLM": "baichuan",
    "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text", "minimax_text_01": "minimax", "minimax_m1": "minimax",
    "nemotron4": "nemotron", "bailing_moe_v2": "bailing_moe", "phi4mm": "phi3", "starcoder": "gpt_bigcode",
    # Text parts: Qwen2_5_VLAttention has Qwen2's biases, Qwen3VLTextAttention Qwen3's norms.
    "qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2",
    "qwen3_vl": "qwen3", "qwen3_vl_text": "qwen3", "qwen3_vl_moe": "qwen3_moe", "qwen3_vl_moe_text": "qwen3_moe",
    "muse_glimmer": "muse_glimmer_text", "muse_spark": "muse_spark_text",
    "step3p7": "step3p5", "mimo": "qwen2", "glm4v": "glm4v_text", "glm46v": "glm4v_text", "glm4v_moe": "glm4_moe",
    "glm4v_moe_text": "glm4_moe",
    "qwen3_omni_moe": "qwen3_moe", "qwen3_omni_moe_thinker": "qwen3_moe", "qwen3_omni_moe_text": "qwen3_moe",
    "qwen2_5_omni": "qwen2", "qwen2_5_omni_thinker": "qwen2", "qwen2_5_omni_text": "qwen2",
}  # fmt: skip
