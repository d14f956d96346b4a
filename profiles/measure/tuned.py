"""Fine-tuning steps that are worth measuring: real models in Hugging Face's code, all weights trained or adapters.

What runs is what most people run: ``transformers.Trainer`` in bf16 on packed sequences of one length, with PEFT's
adapters and bitsandbytes' 4-bit weights where asked for.
"""

from dataclasses import dataclass

from profiles.measure.cases import Case
from profiles.measure.models import ModelShape, step_config
from profiles.timing_ops import STEP

FAMILY = "fine_tune"
FULL, FULL_FP32, LORA, QLORA = "full", "full_fp32", "lora", "qlora"
# Bytes per parameter of what is held all along: weights, and gradient and two moments where they are trained.
_HELD_BYTES = {FULL: 2 + 2 + 4, FULL_FP32: 4 + 4 + 8, LORA: 2.0, QLORA: 0.6}
# For choosing what to run only: bytes per token and hidden element that a layer keeps in Hugging Face's model code
# (norms in fp32, rotary and gate in pieces), and per token and word of the vocabulary (the loss in fp32).
_KEPT_BYTES, _LOGIT_BYTES = 80, 14
_SETUP_S = {FULL: 4.0, FULL_FP32: 4.0, LORA: 4.0, QLORA: 15.0}  # of the first run; guides the choice only
ALL_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
ATTENTION_TARGETS = ("q", "v")


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedModel(ModelShape):
    """A published model, by its name in the catalogue.

    Attributes:
        architecture: ``model_type`` of ``transformers`` whose code runs it.
        tied: Whether the head is the embedding.
    """

    architecture: str
    tied: bool

    @property
    def parameters(self) -> int:
        """Weights of all matrices, the embedding included once or twice; norms and biases left out."""
        return self.layers * self.block_parameters + self.vocab * self.hidden * (1 if self.tied else 2)


# Dimensions from the configuration files that the catalogue names for these models (profiles/data/models).
LLAMA_1B = TunedModel(
    name="llama-3.2-1b", layers=16, hidden=2048, heads=32, kv_heads=8, ffn=8192, vocab=128256, gated=True,
    architecture="llama", tied=True,
)  # fmt: skip
QWEN_1_5B = TunedModel(
    name="qwen2.5-1.5b", layers=28, hidden=1536, heads=12, kv_heads=2, ffn=8960, vocab=151936, gated=True,
    architecture="qwen2", tied=True,
)  # fmt: skip
LLAMA_3B = TunedModel(
    name="llama-3.2-3b", layers=28, hidden=3072, heads=24, kv_heads=8, ffn=8192, vocab=128256, gated=True,
    architecture="llama", tied=True,
)  # fmt: skip
LLAMA_2_7B = TunedModel(
    name="llama-2-7b", layers=32, hidden=4096, heads=32, kv_heads=32, ffn=11008, vocab=32000, gated=True,
    architecture="llama", tied=False,
)  # fmt: skip
LLAMA_8B = TunedModel(
    name="llama-3.1-8b", layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14336, vocab=128256, gated=True,
    architecture="llama", tied=False,
)  # fmt: skip
TINY = TunedModel(
    name="llama-like-tiny", layers=2, hidden=64, heads=4, kv_heads=2, ffn=128, vocab=256, gated=True,
    architecture="llama", tied=True,
)  # fmt: skip
TUNED = {model.name: model for model in (LLAMA_1B, QWEN_1_5B, LLAMA_3B, LLAMA_2_7B, LLAMA_8B, TINY)}


def tune_step(
    model: TunedModel,
    method: str,
    *,
    sequence: int,
    micro_batch: int,
    micro_batches: int = 1,
    recompute: bool,
    rank: int = 16,
    targets: tuple[str, ...] = ALL_TARGETS,
    attention: str = "sdpa",
) -> Case:
    """One optimizer step of a fine-tuning run.

    Args:
        model: The model.
        method: ``full`` (bf16 weights, gradients and moments, as checkpoints are loaded), ``full_fp32`` (fp32 weights
            under bf16 autocast), ``lora`` or ``qlora`` (4-bit weights).
        sequence: Tokens per sequence, none of them padding.
        micro_batch: Sequences per pass.
        micro_batches: Passes whose gradients are added up before the step.
        recompute: Gradient checkpointing of every layer.
        rank: Of the adapters.
        targets: Matrices with adapters, by the planner's names.
        attention: ``attn_implementation`` of transformers.
    """
    tokens = sequence * micro_batch
    # Frozen weights have no gradient of their own: two of the three products are left.
    passes = (3.0 if method in (FULL, FULL_FP32) else 2.0) + (1.0 if recompute else 0.0)
    kept = tokens * model.hidden * (2.0 * model.layers + _KEPT_BYTES if recompute else 1.0 * model.layers * _KEPT_BYTES)
    adapters: dict[str, object] = {"rank": rank, "targets": ",".join(targets)} if method in (LORA, QLORA) else {}
    held = _HELD_BYTES[method] * model.parameters
    return Case(
        family=FAMILY, kind=STEP, op="train_step", dtype="bf16", kernel=f"transformers_{method}",
        shape=(("m", tokens), ("batch", micro_batches), ("group_size", 1), ("num_nodes", 1)),
        config=step_config(model, tied=model.tied, seq=sequence, micro_batch=micro_batch,
                           recompute="full" if recompute else "none", method=method, **adapters, attention=attention),
        flops=micro_batches * passes * model.forward_flops(tokens, sequence), bytes=2.0 * held,
        footprint_bytes=held + kept + 1.0 * _LOGIT_BYTES * tokens * model.vocab,
        setup_s=_SETUP_S[method],
    )  # fmt: skip


# Sequence length, micro-batch, micro-batches and recomputation, the most telling first.
_RUNS = ((2048, 2, 1, True), (2048, 1, 1, False), (1024, 8, 1, True), (4096, 1, 4, True), (8192, 1, 1, True),
         (512, 4, 4, False), (2048, 4, 1, False), (1024, 2, 2, False))  # fmt: skip
_METHODS: tuple[tuple[TunedModel, tuple[str, ...]], ...] = (
    (LLAMA_1B, (FULL, FULL_FP32, LORA, QLORA)),
    (LLAMA_3B, (FULL, FULL_FP32, LORA)),
    (LLAMA_8B, (LORA, QLORA, FULL)),
    (QWEN_1_5B, (FULL, LORA)),
    (LLAMA_2_7B, (LORA, QLORA)),
)


def tune_grid() -> tuple[Case, ...]:
    """Fine-tuning of every model that is worth running, and a few with fewer adapters or unfused attention."""
    found = [
        tune_step(model, method, sequence=sequence, micro_batch=size, micro_batches=count, recompute=recompute)
        for model, methods in _METHODS
        for method in methods
        for sequence, size, count, recompute in _RUNS
    ]
    for rank, targets in ((8, ATTENTION_TARGETS), (64, ALL_TARGETS)):
        found += [
            tune_step(model, LORA, sequence=2048, micro_batch=2, recompute=recompute, rank=rank, targets=targets)
            for model in (LLAMA_1B, LLAMA_2_7B)
            for recompute in (False, True)
        ]
    found += [
        tune_step(LLAMA_1B, FULL, sequence=2048, micro_batch=1, recompute=recompute, attention="eager")
        for recompute in (False, True)
    ]
    return tuple(found)
