"""Kernel: one launch of the lowering, described exactly enough to write its MLIR text."""

from dataclasses import dataclass

from costmodels.kernels.calls import GemmLayout, KernelFamily, KernelOp
from profiles.errors import SpecError, did_you_mean
from profiles.precision import GEMM_FORMATS

# MLIR element type of the operands of an arithmetic format; tf32 is a mode of 32-bit multiplication.
FORMAT_ELEMENT = {
    "fp32": "f32", "tf32": "f32", "fp16": "f16", "bf16": "bf16",
    "fp8": "f8E4M3FN", "fp4": "f4E2M1FN", "int8": "i8",
}  # fmt: skip
ELEMENT_BYTES = {
    "f64": 8.0, "i64": 8.0, "ui64": 8.0, "complex<f32>": 8.0, "complex<f64>": 16.0,
    "f32": 4.0, "tf32": 4.0, "i32": 4.0, "ui32": 4.0,
    "bf16": 2.0, "f16": 2.0, "i16": 2.0, "ui16": 2.0,
    "f8E4M3FN": 1.0, "f8E5M2": 1.0, "f8E4M3FNUZ": 1.0, "f8E5M2FNUZ": 1.0, "f8E4M3": 1.0, "f8E8M0FNU": 1.0,
    "i8": 1.0, "ui8": 1.0, "i1": 1.0, "index": 8.0,
    "f4E2M1FN": 0.5, "i4": 0.5, "ui4": 0.5, "f6E2M3FN": 0.75, "f6E3M2FN": 0.75, "i2": 0.25, "ui2": 0.25,
}  # fmt: skip

DYNAMIC = -1  # an extent the kernel's cost does not depend on, such as the rows of an embedding table

CONTRACTIONS = {"gemm": KernelOp.GEMM, "grouped_gemm": KernelOp.GROUPED_GEMM}
ATTENTION = {
    "sdpa": KernelOp.ATTENTION_FORWARD,
    "sdpa_backward": KernelOp.ATTENTION_BACKWARD,
    "sdpa_decode": KernelOp.ATTENTION_DECODE,
}
# Bandwidth-bound operations and their family; the first of a family stands for it where only that is known.
MEMORY = {
    "add": KernelFamily.POINTWISE, "subtract": KernelFamily.POINTWISE, "multiply": KernelFamily.POINTWISE,
    "divide": KernelFamily.POINTWISE, "power": KernelFamily.POINTWISE, "maximum": KernelFamily.POINTWISE,
    "minimum": KernelFamily.POINTWISE, "add_scalar": KernelFamily.POINTWISE,
    "multiply_scalar": KernelFamily.POINTWISE, "divide_scalar": KernelFamily.POINTWISE,
    "power_scalar": KernelFamily.POINTWISE, "select": KernelFamily.POINTWISE, "dropout": KernelFamily.POINTWISE,
    "convert": KernelFamily.POINTWISE, "reduce_sum": KernelFamily.OTHER,
    "rms_norm": KernelFamily.NORM, "layer_norm": KernelFamily.NORM, "add_rms_norm": KernelFamily.NORM,
    "add_layer_norm": KernelFamily.NORM,
    "rms_norm_backward": KernelFamily.NORM_BACKWARD, "layer_norm_backward": KernelFamily.NORM_BACKWARD,
    "gelu": KernelFamily.ACTIVATION, "silu": KernelFamily.ACTIVATION, "relu": KernelFamily.ACTIVATION,
    "tanh": KernelFamily.ACTIVATION, "sigmoid": KernelFamily.ACTIVATION,
    "gelu_backward": KernelFamily.ACTIVATION, "silu_backward": KernelFamily.ACTIVATION,
    "relu_backward": KernelFamily.ACTIVATION, "tanh_backward": KernelFamily.ACTIVATION,
    "swiglu": KernelFamily.GATED_ACTIVATION, "geglu": KernelFamily.GATED_ACTIVATION,
    "swiglu_backward": KernelFamily.GATED_ACTIVATION, "geglu_backward": KernelFamily.GATED_ACTIVATION,
    "softmax": KernelFamily.SOFTMAX, "log_softmax": KernelFamily.SOFTMAX, "softmax_backward": KernelFamily.SOFTMAX,
    "rotary": KernelFamily.ROTARY, "rotary_backward": KernelFamily.ROTARY,
    "embedding": KernelFamily.EMBEDDING, "embedding_backward": KernelFamily.EMBEDDING,
    "cross_entropy": KernelFamily.CROSS_ENTROPY, "cross_entropy_backward": KernelFamily.CROSS_ENTROPY,
    "adamw": KernelFamily.OPTIMIZER, "sgd": KernelFamily.OPTIMIZER,
    "quantise": KernelFamily.QUANTISE, "quantise_rows": KernelFamily.QUANTISE, "dequantise": KernelFamily.QUANTISE,
    "permute": KernelFamily.PERMUTE, "unpermute": KernelFamily.PERMUTE,
    "copy": KernelFamily.COPY, "transpose": KernelFamily.COPY,
}  # fmt: skip
OPS = (*CONTRACTIONS, *ATTENTION, *MEMORY)

MOST_EXTENT = 1 << 48  # largest extent or count; beyond it products would leave 64-bit integers' exact floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel; equal kernels have equal texts and keys.

    Attributes:
        op: One of ``OPS``.
        format: Arithmetic format of contractions and attention: a ``GEMM_FORMATS`` name or ``int8``.
        storage: MLIR element type of the operands in memory; by default that of ``format`` (``dequantise``:
            f8E4M3FN).
        second_storage: Of the weight or of keys and values; by default ``storage``.
        result_storage: Of the result; by default ``storage`` (``quantise``: f8E4M3FN; ``dequantise``,
            ``convert``: that of ``format``).
        m, n, k: GEMM: C[m,n] = A[m,k] B[k,n]. Attention: m query tokens, n key tokens, k query/key head
            width. Memory: m rows of n elements; k the head width of ``rotary``, the rows of an embedding
            table or of a permutation's other side (0: not known).
        batch: GEMMs of one launch, or sequences.
        heads, kv_heads: Attention only.
        value_width: Head width of the values; by default k.
        causal: Share of the score matrix computed: 0.5 causal, 1 full, less for windows.
        layout: ``GemmLayout``: x W^T, dy W or dy^T x.
        kernels: Launches, where one description stands for several unfused kernels.
        traffic_bytes: Their bytes read plus written together, where that is not each operand once.
    """

    op: str
    format: str = "bf16"
    storage: str = ""
    second_storage: str = ""
    result_storage: str = ""
    m: int = 1
    n: int = 1
    k: int = 0
    batch: int = 1
    heads: int = 0
    kv_heads: int = 0
    value_width: int = 0
    causal: float = 1.0
    layout: int = GemmLayout.FORWARD
    kernels: float = 1
    traffic_bytes: float | None = None

    def __post_init__(self) -> None:
        """Refuse what has no text.

        Raises:
            SpecError: Naming the field that cannot be.
        """
        if self.op not in OPS:
            raise SpecError("kernel.op", f"unknown operation {self.op[:40]!r}", did_you_mean(self.op, OPS))
        if self.format not in FORMAT_ELEMENT:
            raise SpecError(
                "kernel.format", f"unknown format {self.format[:40]!r}", did_you_mean(self.format, FORMAT_ELEMENT)
            )
        for name in ("storage", "second_storage", "result_storage"):
            value = getattr(self, name)
            if value and value not in ELEMENT_BYTES:
                raise SpecError(
                    f"kernel.{name}", f"unknown element type {value[:40]!r}", did_you_mean(value, ELEMENT_BYTES)
                )
        contracts = self.op in CONTRACTIONS or self.op in ATTENTION
        low = {"m": 1, "n": 1, "k": int(contracts), "batch": 1, "kernels": 1}
        if self.op in ATTENTION:
            low |= {"heads": 1, "kv_heads": 1}
        for name, least in low.items():
            value = getattr(self, name)
            if not least <= value <= MOST_EXTENT:
                raise SpecError(f"kernel.{name}", f"must be between {least} and {MOST_EXTENT}; got {value}")
        if self.op in ATTENTION and self.heads % self.kv_heads:
            raise SpecError("kernel.heads", f"{self.heads} is no multiple of {self.kv_heads} key/value heads")
        if self.op in ATTENTION and not 0 < self.causal <= 1:
            raise SpecError("kernel.causal", f"must be above 0 and at most 1; got {self.causal}")
        if self.op == "convert" and self.element == self.result_element:
            raise SpecError("kernel.result_storage", f"converts {self.element} to itself")
        if self.op.startswith("rotary") and (self.head_width % 2 or self.n % self.head_width):
            raise SpecError("kernel.n", f"{self.n} is not made of even heads of {self.head_width}")

    @property
    def element(self) -> str:
        """MLIR element type of the main operand in memory."""
        return self.storage or ("f8E4M3FN" if self.op == "dequantise" else FORMAT_ELEMENT[self.format])

    @property
    def second_element(self) -> str:
        """MLIR element type of the weight, or of keys and values."""
        return self.second_storage or self.element

    @property
    def result_element(self) -> str:
        """MLIR element type of the result."""
        if self.result_storage:
            return self.result_storage
        if self.op.startswith("quantise"):
            return "f8E4M3FN"
        return FORMAT_ELEMENT[self.format] if self.op in ("dequantise", "convert") else self.element

    @property
    def head_width(self) -> int:
        """Width a rotary embedding turns as one: k, or the whole row."""
        return self.k or self.n

    @property
    def format_index(self) -> int:
        """Index into ``GEMM_FORMATS``.

        Raises:
            SpecError: If no device's peak is kept for the format.
        """
        if self.format not in GEMM_FORMATS:
            raise SpecError("kernel.format", f"no peak rate is kept for {self.format!r}", "use one of fp16, bf16, fp8")
        return GEMM_FORMATS.index(self.format)
