"""Numeric formats: how many bytes an element takes and which peak rate multiplies it."""

from dataclasses import dataclass
from typing import Literal, get_args

from profiles.errors import SpecError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """One training precision recipe, as frameworks name them.

    Attributes:
        name: Canonical short name.
        gemm_format: Key into ``DeviceSpec.peak_flops_per_s`` for the linear layers.
        storage_bytes: Bytes per element of the weights and activations kept in memory. The 8- and
            4-bit training recipes keep 16-bit weights and quantise on the fly (Transformer Engine).
        linear_input_bytes: Bytes per element of the activation a linear layer saves for its
            weight gradient (Transformer Engine saves the quantised copy).
        scale_block: Elements that share one scale; 0: the whole tensor, or none.
        engines_only: Only engines that serve multiply so; no job trains in it.
    """

    name: str
    gemm_format: str
    storage_bytes: float
    linear_input_bytes: float
    scale_block: int = 0
    engines_only: bool = False


_RECIPES = (
    Precision(name="fp32", gemm_format="fp32", storage_bytes=4, linear_input_bytes=4),
    Precision(name="tf32", gemm_format="tf32", storage_bytes=4, linear_input_bytes=4),
    Precision(name="fp16", gemm_format="fp16", storage_bytes=2, linear_input_bytes=2),
    Precision(name="bf16", gemm_format="bf16", storage_bytes=2, linear_input_bytes=2),
    Precision(name="fp8", gemm_format="fp8", storage_bytes=2, linear_input_bytes=1),
    # One shared 8-bit exponent per 32 elements (OCP Microscaling Formats v1.0), row and column copies.
    Precision(name="mxfp8", gemm_format="fp8", storage_bytes=2, linear_input_bytes=1 + 1 / 32, scale_block=32),
    # One fp8 scale per 16 elements (NVIDIA NVFP4 pre-training report, arXiv:2509.25149).
    Precision(name="nvfp4", gemm_format="fp4", storage_bytes=2, linear_input_bytes=0.5 + 1 / 16, scale_block=16),
    # As mxfp8, in 4 bits.
    Precision(name="mxfp4", gemm_format="fp4", storage_bytes=2, linear_input_bytes=0.5 + 1 / 32, scale_block=32),
    # An fp32 scale per 128 elements of an input and per 128 x 128 weights (DeepSeek-V3, arXiv:2412.19437).
    Precision(
        name="fp8-block",
        gemm_format="fp8",
        storage_bytes=2,
        linear_input_bytes=1 + 4 / 128,
        scale_block=128,
        engines_only=True,
    ),
)
_ALL = {recipe.name: recipe for recipe in _RECIPES}
PRECISIONS = {name: recipe for name, recipe in _ALL.items() if not recipe.engines_only}
FP32_BYTES, FP8_BYTES = 4.0, 1.0  # of an element
GemmFormat = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "fp4"]
GEMM_FORMATS: tuple[str, ...] = get_args(GemmFormat)

_ALIASES = {
    "float32": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16",
    "float8": "fp8", "fp4": "nvfp4", "mixed": "bf16",
}  # fmt: skip

# Bytes per element of the tensors a job may choose a format for (gradients, master weights, states).
ELEMENT_BYTES = {"none": 0, "fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}

# NF4 with double quantisation: 4 bits, an 8-bit constant per 64 weights and an fp32 one per 256 of
# those (arXiv:2305.14314 section 3).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def format_name(name: str) -> str:
    """The name of a number format here, in small letters, of a spelling such as PyTorch's.

    Example:
        >>> format_name("BFloat16")
        'bf16'
    """
    key = name.strip().lower().removeprefix("torch.")
    return _ALIASES.get(key, key)


def find_recipe(name: str) -> Precision:
    """The recipe of that name, those of engines among them.

    Raises:
        SpecError: If there is none.
    """
    return _ALL[name] if name in _ALL else parse_precision(name)


def parse_precision(name: str) -> Precision:
    """The recipe a job may train in of that name (case-insensitive; common aliases accepted).

    Raises:
        SpecError: If the name is unknown.
    """
    key = format_name(name)
    if key not in PRECISIONS:
        raise SpecError("job.precision", f"unknown precision {name[:40]!r}", did_you_mean(key, PRECISIONS))
    return PRECISIONS[key]
