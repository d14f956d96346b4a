"""Jobs: what is to be trained, independent of how it is laid out on devices."""

from dataclasses import dataclass

from profiles.adapter_parameters import MLP_TARGETS
from profiles.errors import SpecError, check_between
from profiles.model import MAX_SEQUENCE
from profiles.precision import Precision, find_recipe

MAX_GLOBAL_BATCH = 1 << 22
TASKS = ("pretrain", "full", "lora", "qlora")
ADAPTER_TASKS = ("lora", "qlora")
QUANTISED_TASK = "qlora"  # whose frozen weights lie in 4 bits
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "sgd", "none")
# Formats in which a training step can do its sums; 8 bits hold the moments of optimizers that scale them.
GRADIENT_DTYPES = ("fp32", "bf16", "fp16")
MASTER_DTYPES = ("none", *GRADIENT_DTYPES)
STATE_DTYPES = (*GRADIENT_DTYPES, "fp8", "int8")
ATTENTION_KERNELS = ("flash", "unfused")
FROZEN_DTYPES = ("", "fp32")
ATTENTION_LIBRARIES = ("", "flash_2", "flash_3", "cudnn")

# Linear layers of one transformer layer that an adapter may be attached to.
LORA_TARGETS = ("q", "k", "v", "o", *MLP_TARGETS)
# Where one layer makes queries, keys and values (GPT-NeoX's query_key_value, Phi-3's qkv_proj), it has one adapter.
JOINT_TARGET = "qkv"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        rank: Inner width r of the adapter pair.
        targets: Which linear layers carry one (``LORA_TARGETS``; ``JOINT_TARGET`` in place of q, k and v).
        dropout: Whether each drops part of its input, of which it then keeps a copy and a mask.
    """

    rank: int = 16
    targets: tuple[str, ...] = LORA_TARGETS
    dropout: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One training run.

    Attributes:
        sequence_length: Tokens per sequence as the kernels see them (s).
        global_batch_size: Sequences per optimizer step over all ranks.
        task: ``pretrain``, ``full`` (fine-tuning), ``lora`` or ``qlora``.
        precision: Recipe name, see ``profiles.precision``.
        gradient_dtype: Format gradients are accumulated in; "" means the stack's default.
        master_dtype: Format of the master copy of the weights; ``none`` when there is none.
        state_dtype: Format of each optimizer moment; ``int8`` for 8-bit Adam.
        optimizer: Which optimizer.
        optimizer_in_backward: Every parameter is updated as soon as its gradient is there, which then goes
            (torchtune's ``optimizer_in_bwd``, torchtitan's ``early_step_in_backward``, LOMO, layer-wise GaLore).
            Gradients are neither accumulated over micro-batches nor clipped.
        paged_optimizer: Its moments are in unified memory, on the device as far as there is room (bitsandbytes' paged
            optimizers, arXiv:2305.14314, section 3).
        attention: ``flash`` (never materialises scores) or ``unfused``.
        attention_library: Whose kernel that is where it is not the one the stack picks: ``flash_2``, ``flash_3`` or
            ``cudnn``; "" leaves it to the stack. It tells on Hopper, where FlashAttention-2 has half the rate, and on
            data-centre Blackwell, where it has a third.
        lora: Adapter structure for ``lora`` and ``qlora``.
        dropout: Whether dropout masks are kept (Megatron GPT-2/3 recipes).
        padding_efficiency: Useful tokens over computed tokens; 1 for packed sequences.
        varied_lengths: Micro-batches differ in length, each padded to its own longest sequence, so that the allocator
            holds blocks of many sizes; ``sequence_length`` is the longest. Packed sequences, or all padded to one
            length, do not.
        sample_tokens: Tokens of a sample where several are packed into a sequence and attention stays inside each; None
            where it spans the sequence.
        train_tokens: Length of the run in tokens, for days and dollars; None when not asked.
        fused_cross_entropy: The loss never materialises fp32 logits.
        linear_cross_entropy: Nor any logits: the output layer and the loss run together, a few tokens at a time
            (Liger's fused linear cross-entropy, cut cross-entropy). Then ``fused_cross_entropy`` says nothing more.
        fp32_unquantised: What QLoRA does not quantise is fp32 where its stack casts it. Not with weights that GPTQ,
            AQLM, EETQ or HQQ quantised (huggingface/peft, src/peft/utils/other.py, prepare_model_for_kbit_training),
            nor where nobody calls that.
        frozen_dtype: ``fp32`` where the weights beside adapters are loaded and kept so, as Hugging Face's
            ``from_pretrained`` did unless told otherwise (``dtype``; before transformers 5), and run under autocast, or
            gathered in 16 bits by FSDP; "" for the format that products run in.
        fp8_activation: The input of the activation function is kept for the backward pass in 8 bits (Megatron-Core's
            ``activation_func_fp8_input_store``), whatever the precision of the products.
        fp8_attention: So are queries, keys, values and the output of attention (Transformer Engine's
            ``fp8_dot_product_attention`` with its backward pass, ``NVTE_FP8_DPA_BWD``). Times stay those of 16 bits.
    """

    sequence_length: int
    global_batch_size: int
    task: str = "pretrain"
    precision: str = "bf16"
    gradient_dtype: str = ""
    master_dtype: str = "fp32"
    state_dtype: str = "fp32"
    optimizer: str = "adamw"
    optimizer_in_backward: bool = False
    paged_optimizer: bool = False
    attention: str = "flash"
    attention_library: str = ""
    lora: LoraSpec | None = None
    dropout: bool = False
    padding_efficiency: float = 1.0
    varied_lengths: bool = False
    sample_tokens: int | None = None
    train_tokens: float | None = None
    fused_cross_entropy: bool = False
    linear_cross_entropy: bool = False
    fp32_unquantised: bool = True
    frozen_dtype: str = ""
    fp8_activation: bool = False
    fp8_attention: bool = False

    def __post_init__(self) -> None:
        check_between("job.sequence_length", self.sequence_length, 1, MAX_SEQUENCE)
        check_between("job.global_batch_size", self.global_batch_size, 1, MAX_GLOBAL_BATCH)
        _one_of("job.task", self.task, TASKS)
        _one_of("job.optimizer", self.optimizer, OPTIMIZERS)
        _one_of("job.attention", self.attention, ATTENTION_KERNELS)
        _one_of("job.attention_library", self.attention_library, ATTENTION_LIBRARIES)
        _one_of("job.frozen_dtype", self.frozen_dtype, FROZEN_DTYPES)
        _one_of("job.master_dtype", self.master_dtype, MASTER_DTYPES)
        _one_of("job.state_dtype", self.state_dtype, STATE_DTYPES)
        _one_of("job.gradient_dtype", self.gradient_dtype, ("", *GRADIENT_DTYPES))
        find_recipe(self.precision)
        for name in ("fp8_attention", "attention_library"):
            if getattr(self, name) and self.attention != "flash":
                problem = f"needs flash attention; attention is {self.attention!r}"
                raise SpecError(f"job.{name}", problem, "attention flash, or leave it out")
        if self.sample_tokens is not None:
            check_between("job.sample_tokens", self.sample_tokens, 1, self.sequence_length)
            if self.attention != "flash":
                problem = f"needs flash attention, which skips other samples; attention is {self.attention!r}"
                raise SpecError("job.sample_tokens", problem, "attention flash, or leave it out")
        if self.optimizer_in_backward and self.trains_adapters_only:
            problem = f"updates the weights of a model as the backward pass reaches them; task is {self.task!r}"
            raise SpecError("job.optimizer_in_backward", problem, "task full, or leave it out")
        if self.frozen_dtype and self.task != "lora":
            problem = f"is of the weights beside unquantised adapters; task is {self.task!r}"
            raise SpecError("job.frozen_dtype", problem, "task lora, or leave it out")
        least = 1 / self.sequence_length  # a sequence has one useful token or more
        if not least <= self.padding_efficiency <= 1:
            problem = f"must be from {least:.3g}, one token of a sequence, to 1; got {self.padding_efficiency}"
            raise SpecError("job.padding_efficiency", problem, "1 where nothing is padded")
        if (self.lora is not None) != self.trains_adapters_only:
            raise SpecError("job.lora", f"must be given exactly when task is lora or qlora; task is {self.task!r}")

    @property
    def numerics(self) -> Precision:
        """The precision recipe."""
        return find_recipe(self.precision)

    @property
    def tokens_per_step(self) -> int:
        """Tokens computed per optimizer step, padding included."""
        return self.sequence_length * self.global_batch_size

    @property
    def attended_tokens(self) -> int:
        """Tokens that attend to each other: a sequence, or a sample within one."""
        return self.sequence_length if self.sample_tokens is None else self.sample_tokens

    @property
    def fuses_loss(self) -> bool:
        """Whether the loss is one kernel that makes no fp32 logits, with the output layer or without."""
        return self.fused_cross_entropy or self.linear_cross_entropy

    @property
    def trains_adapters_only(self) -> bool:
        """Whether base weights are frozen."""
        return self.task in ADAPTER_TASKS


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        words = [word for word in known if word]
        hint = f"use one of {', '.join(words)}" if len(words) > 1 else f"{words[0]}, or leave it out"
        raise SpecError(name, f"unknown value {value[:40]!r}", hint)
