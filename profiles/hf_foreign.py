"""Model types and names of what is no decoder-only transformer or has layers without a cost model: what these are."""

from collections.abc import Mapping

ENCODERS = frozenset({
    "t5", "mt5", "umt5", "longt5", "switch_transformers", "t5gemma", "bart", "mbart", "pegasus", "marian",
    "m2m_100", "nllb-moe", "whisper", "led", "prophetnet", "blenderbot", "blenderbot-small", "fsmt", "plbart",
    "encoder-decoder", "speech_to_text", "vision-encoder-decoder", "bert", "roberta", "xlm-roberta",
    "xlm-roberta-xl", "camembert", "electra", "albert", "distilbert", "deberta", "deberta-v2", "mpnet",
    "modernbert", "eurobert", "esm", "layoutlm", "longformer", "big_bird", "wav2vec2", "hubert",
})  # fmt: skip
# Further ones of transformers 5.24, which fill in masked tokens or read other than text: only in files, for their words
# in names of checkpoints are those of decoders as well (ERNIE).
ENCODER_TYPES = frozenset({
    "bert-generation", "bros", "canine", "convbert", "data2vec-audio", "data2vec-text", "dpr", "ernie",
    "esmc", "fnet", "funnel", "gte", "ibert", "jina_embeddings_v3", "layoutlmv2", "layoutlmv3", "layoutxlm", "lilt",
    "luke", "markuplm", "megatron-bert", "mobilebert", "mra", "nomic_bert", "nystromformer",
    "rembert", "roberta-prelayernorm", "roc_bert", "roformer", "sew", "sew-d", "splinter", "squeezebert", "t5gemma2",
    "t5gemma2_text", "t5gemma2_decoder", "t5_gemma_module", "tapas", "tvp", "ultrabert", "ultravbert", "unispeech",
    "unispeech-sat", "vilt", "visual_bert", "vits", "wavlm", "xmod", "yoso",
})  # fmt: skip
# How model types of parts end that encode text, speech or images; and those of decoders that end so.
ENCODER_ENDINGS = ("_text_model", "_encoder", "_qformer", "_image_model", "_vision", "_vision_model")
NO_ENCODERS = ("emu3_text_model", "mllama_text_model")
STATE_SPACE = frozenset({
    "mamba", "mamba2", "falcon_mamba", "falcon_h1", "jamba", "bamba", "zamba", "zamba2", "rwkv", "rwkv5",
    "rwkv6", "rwkv7", "recurrent_gemma", "retnet", "xlstm", "lfm2", "lfm2_moe",
    "hyena", "stripedhyena", "plamo2",
})  # fmt: skip
STATES = "state-space or recurrent layers"
# Gemma3nTextConfig: altup_num_inputs, hidden_size_per_layer_input, num_kv_shared_layers.
_ALTUP = "AltUp, per-layer embeddings and layers that share keys and values"
_CONVOLUTIONS = "layers of short convolutions"
_BESIDE = "mixers of Mamba-2 beside attention in every layer"
_MAMBA_1 = "layers of Mamba-1"
# Of families with states, the key of a file that says so, and what they have.
TELLING: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("lfm2", "lfm2_moe"), ("conv_L_cache", _CONVOLUTIONS)),
    "falcon_h1": ("mamba_d_ssm", _BESIDE),
    "jamba": ("mamba_d_state", _MAMBA_1),
}
_PER_LAYER = "embeddings of every layer and layers that share keys and values"
_DIFFUSION = "tokens that are filled in by diffusion"
_BLOCKS = "keys that an indexer chooses in blocks"
_WIDTHS = "layers of different widths"
# Families with other layers that have no cost model: what these are.
UNPRICED: Mapping[str, str] = {
    **dict.fromkeys(("gemma3n", "gemma3n_text"), _ALTUP),
    **dict.fromkeys(("diffusion_gemma", "diffusion_gemma_text"), _DIFFUSION),
    # JetMoeAttention: a router chooses query and output matrices of every token.
    "jetmoe": "experts of attention",
    **dict.fromkeys(("minimax_m3", "minimax_m3_text", "minimax_m3_vl", "minimax_m3_vl_text"), _BLOCKS),
}
# Words in names of models without one, canonical and between hyphens.
UNPRICED_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("-mamba-", "-bamba-"), STATES),
    **dict.fromkeys(("-falcon-h-1-", "-falcon-h-1r-"), _BESIDE),
    "-jamba-": _MAMBA_1,
    "-lfm-2-": _CONVOLUTIONS,
    **dict.fromkeys(("-zamba-", "-rwkv-", "-recurrentgemma-"), STATES),
    "-gemma-3n-": _ALTUP,
    "-deepseek-v-4-1-": "compressed keys that layers share, and embeddings of n-grams",
    **dict.fromkeys(("-gemma-4-e-2b-", "-gemma-4-e-4b-"), _PER_LAYER),
    "-diffusiongemma-": _DIFFUSION,
    "-minimax-m-3-": _BLOCKS,
    **dict.fromkeys(("-nemotron-super-49b-", "-nemotron-ultra-253b-", "-nemotron-51b-"), _WIDTHS),
    "-glm-5-3-flash-": "keys that an indexer chooses in groups",
    **dict.fromkeys(("-ring-mini-linear-", "-ring-flash-linear-"), STATES),
    **dict.fromkeys(("-ling-2-5-", "-ling-2-6-", "-ring-2-5-", "-ring-2-6-"), "groups of layers that attend linearly"),
    **dict.fromkeys(("-11b-vision-", "-90b-vision-"), "layers that attend to images"),
    "-longcat-flash-": "experts that compute nothing",
    "-hunyuan-large-": "layers that share keys and values",
}
VISION = frozenset({
    "vit", "vit_mae", "vit_msn", "deit", "beit", "swin", "swinv2", "clip", "clip_vision_model",
    "clip_text_model", "siglip", "siglip_vision_model", "siglip2", "dinov2", "dinov3_vit", "convnext",
    "convnextv2", "resnet", "detr", "segformer", "sam", "dpt", "yolos", "mobilevit", "efficientnet",
})  # fmt: skip
