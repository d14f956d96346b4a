"""Formats in which the checkpoints that engines serve hold the matrices of layers.

Which question it answers: how many bytes a weight takes, and what multiplies it on a device. Where a device has the
arithmetic, products run in the format; elsewhere kernels unpack the weights to 16 bits as they go, and save only the
reading of them. Embedding, norms, router and head stay in 16 bits.
"""

from dataclasses import dataclass

from profiles.errors import SpecError, did_you_mean, shown
from profiles.hardware import DeviceSpec
from profiles.precision import find_recipe

SIXTEEN_BITS = ("bf16", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """One format of weights.

    Attributes:
        name: As checkpoints and options say it.
        title: For people.
        element_bytes: Of a weight with its share of scales and zero points.
        recipe: Recipe (``profiles.precision``) of products of such weights; "" where all unpack them to 16 bits.
        group: Weights that share a scale along the inputs of a product, which no rank may get a part of; 0: all, or
            kernels do with parts.
        grouped_outputs: Whether weights of so many outputs share it as well.
        experts_only: Only the matrices of routed experts are in it.
        beside: Format of all other matrices where that is another; ``recipe``, ``group`` and ``grouped_outputs`` are
            these', and experts multiply in 8 bits where a device has products of 8 by 4 bits, else in 16.
        expert_group: Weights of an expert that share a scale, where ``beside`` says what others do.
        expert_multiples: Multiples that an engine's kernels round the hidden width of experts, and a rank's part of
            their own, up to (``EngineSpec.laid_out``).
        source: Where the layout is described.
    """

    name: str
    title: str
    element_bytes: float
    recipe: str
    group: int = 0
    grouped_outputs: bool = False
    experts_only: bool = False
    beside: str = ""
    expert_group: int = 0
    expert_multiples: tuple[int, int] = (1, 1)
    source: str

    @property
    def dense_bytes(self) -> float:
        """Bytes of a weight that is no routed expert's; 0 where these stay in 16 bits."""
        if self.beside:
            return WEIGHT_FORMATS[self.beside].element_bytes
        return 0.0 if self.experts_only else self.element_bytes

    def recipe_on(self, device: DeviceSpec) -> str:
        """The recipe of its products on a device; "" where these are in 16 bits."""
        return self.recipe if self.recipe and find_recipe(self.recipe).gemm_format in device.peak_flops_per_s else ""


_FORMATS = (
    WeightFormat(
        name="fp8",
        title="8 bits, a scale per tensor or channel",
        element_bytes=1.0,
        recipe="fp8",
        source="vLLM documentation, FP8 W8A8; compressed-tensors; ModelOpt FP8",
    ),
    WeightFormat(
        name="fp8-block",
        title="8 bits, an fp32 scale per 128 x 128",
        element_bytes=1.0 + 4.0 / 128**2,
        recipe="fp8-block",
        group=128,
        grouped_outputs=True,
        source="DeepSeek-V3 technical report (arXiv:2412.19437), section 3.3.2",
    ),
    WeightFormat(
        name="int8",
        title="8 bits beside 16-bit products, groups of 128",
        element_bytes=1.0 + 2.0 / 128,
        recipe="",
        group=128,
        source="GPTQ (arXiv:2210.17323)",
    ),
    WeightFormat(
        name="int4",
        title="4 bits, a 16-bit scale and a 4-bit zero per 128",
        element_bytes=0.5 + 2.5 / 128,
        recipe="",
        group=128,
        source="GPTQ (arXiv:2210.17323); AWQ (arXiv:2306.00978)",
    ),
    WeightFormat(
        name="int4-experts",
        title="experts in 4 bits, a 16-bit scale per 32",
        element_bytes=0.5 + 2.0 / 32,
        recipe="",
        group=32,
        experts_only=True,
        source="config.json of Kimi K2.5 (compressed-tensors, pack-quantized, group_size 32)",
    ),
    WeightFormat(
        name="mxfp4",
        title="experts in 4 bits, an 8-bit exponent per 32",
        element_bytes=0.5 + 1.0 / 32,
        recipe="",
        experts_only=True,
        source="gpt-oss model card (arXiv:2508.10925), section 2.1; OCP Microscaling Formats v1.0",
    ),
    WeightFormat(
        name="mxfp4-fp8",
        title="experts in 4 bits, an 8-bit exponent per 32; the rest in 8, by 128 x 128",
        element_bytes=0.5 + 1.0 / 32,
        recipe="fp8-block",
        group=128,
        grouped_outputs=True,
        beside="fp8-block",
        expert_group=32,
        source="deepseek-ai/DeepSeek-V4-Flash and -Pro, config.json (expert_dtype fp4) and inference/model.py (Linear)",
    ),
    WeightFormat(
        name="mxfp4-all",
        title="4 bits, an 8-bit exponent per 32, in all layers",
        element_bytes=0.5 + 1.0 / 32,
        recipe="mxfp4",
        group=32,
        source="model cards of amd/Llama-3.3-70B-Instruct-MXFP4-Preview and amd/Llama-3.1-405B-Instruct-MXFP4-Preview "
        "(weights and activations in OCP MXFP4)",
    ),
    WeightFormat(
        name="nvfp4",
        title="4 bits, an 8-bit scale per 16",
        element_bytes=0.5 + 1.0 / 16,
        recipe="nvfp4",
        group=16,
        source="NVIDIA NVFP4 pre-training report (arXiv:2509.25149)",
    ),
)
WEIGHT_FORMATS = {each.name: each for each in _FORMATS}
_ALIASES = {
    "awq": "int4", "gptq": "int4", "w4a16": "int4", "w8a16": "int8", "fp4": "nvfp4", "float8": "fp8",
    "fp8_block": "fp8-block", "fp8_e4m3": "fp8",
}  # fmt: skip


def parse_weights(name: object) -> WeightFormat | None:
    """The format of that name; None for 16 bits.

    Raises:
        SpecError: If there is none of that name.
    """
    key = name.strip().lower() if isinstance(name, str) else ""
    key = _ALIASES.get(key, key)
    if key in SIXTEEN_BITS or key == "16":
        return None
    if key not in WEIGHT_FORMATS:
        known = (*WEIGHT_FORMATS, "bf16")
        hint = did_you_mean(key, known) if key else f"one of {', '.join(known)}"
        raise SpecError("weights", f"unknown format {shown(name)}", hint)
    return WEIGHT_FORMATS[key]
