"""Fine-tunes a model of Hugging Face's code for a few steps, as its users do, and times the later ones.

Weights are random: neither time nor memory of a dense model depends on them.
"""

import functools
import json
import tempfile
from collections.abc import Callable
from typing import Any

from profiles.measure.backend import Backend, optional_module
from profiles.measure.cases import Case
from profiles.measure.steps import STEPS, WARM_UP_STEPS, StepResult
from profiles.measure.timing import summary
from profiles.measure.tuned import FULL_FP32, LORA, QLORA, TUNED, TunedModel

_ADAPTERS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "gate": "gate_proj", "up": "up_proj",
             "down": "down_proj"}  # fmt: skip


def measure_fine_tuning(case: Case, backend: Backend) -> StepResult:
    """Run ``transformers.Trainer`` with its defaults on random tokens; a step lasts from one step's end to the next's.

    Raises:
        NotImplementedError: If transformers, PEFT or bitsandbytes is missing.
        RuntimeError: As PyTorch raises it, for want of memory.
    """
    transformers = _needed("transformers")
    settings = json.loads(case.config)
    model_spec = TUNED[settings["model"]]
    backend.forget_peaks()
    backend.seed()
    peaks = backend.watch_memory()
    model = _model(model_spec, settings, backend, transformers)
    steps = WARM_UP_STEPS + STEPS
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=settings["micro_batch"],
            gradient_accumulation_steps=case["batch"],
            max_steps=steps,
            bf16=True,
            gradient_checkpointing=settings["recompute"] == "full",
            gradient_checkpointing_kwargs={"use_reentrant": False},
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not backend.is_gpu,
        )
        clock = _clock(transformers, backend)
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=_tokens(case, settings, model_spec, backend), callbacks=[clock]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        backend.forget_peaks()
        trainer.train()
    allocated, reserved = peaks()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return StepResult(
        timing=summary(clock.seconds[WARM_UP_STEPS:], "wall"), allocated_bytes=allocated, reserved_bytes=reserved,
        first_loss=losses[0], last_loss=losses[-1],
    )  # fmt: skip


def _needed(name: str) -> Any:
    module = optional_module(name)
    if module is None:
        raise NotImplementedError(f"{name} is not installed")
    return module


def versions() -> str:
    """What runs the steps, e.g. ``transformers=5.17.0 peft=0.21.2``."""
    found = ((name, optional_module(name)) for name in ("transformers", "accelerate", "peft", "bitsandbytes"))
    return " ".join(f"{name}={module.__version__}" for name, module in found if module is not None)


def _model(spec: TunedModel, settings: dict[str, Any], backend: Backend, transformers: Any) -> Any:
    method, torch = settings["method"], backend.torch
    quantised = method == QLORA
    if quantised:
        _needed("bitsandbytes")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            _checkpoint(spec, backend).name, device_map={"": backend.device}, attn_implementation=settings["attention"],
            quantization_config=transformers.BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            ),
        )  # fmt: skip
    else:
        with torch.device(backend.device):
            model = transformers.AutoModelForCausalLM.from_config(
                _config(spec, transformers), attn_implementation=settings["attention"],
                dtype=torch.float32 if method == FULL_FP32 else torch.bfloat16,
            )  # fmt: skip
    model.config.use_cache = False
    return _with_adapters(model, settings, quantised=quantised) if method in (LORA, QLORA) else model


def _with_adapters(model: Any, settings: dict[str, Any], *, quantised: bool) -> Any:
    peft = _needed("peft")
    recompute = settings["recompute"] == "full"
    if quantised:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=recompute)
    elif recompute:
        model.enable_input_require_grads()
    targets = [_ADAPTERS[name] for name in settings["targets"].split(",")]
    rank = settings["rank"]
    return peft.get_peft_model(
        model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
    )


def _config(spec: TunedModel, transformers: Any) -> Any:
    return transformers.AutoConfig.for_model(
        spec.architecture, num_hidden_layers=spec.layers, hidden_size=spec.hidden, num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads, head_dim=spec.head_dim, intermediate_size=spec.ffn, vocab_size=spec.vocab,
        tie_word_embeddings=spec.tied, max_position_embeddings=131072,
    )  # fmt: skip


@functools.cache
def _checkpoint(spec: TunedModel, backend: Backend) -> tempfile.TemporaryDirectory[str]:
    """A folder with the model's weights in bf16, as they are published, for what quantises while it loads.

    It is written once and goes when the process ends.
    """
    transformers = _needed("transformers")
    folder = tempfile.TemporaryDirectory(prefix="fine-tune-")
    with backend.torch.device(backend.device):
        model = transformers.AutoModelForCausalLM.from_config(_config(spec, transformers), dtype=backend.torch.bfloat16)
    model.save_pretrained(folder.name)
    return folder


def _tokens(case: Case, settings: dict[str, Any], spec: TunedModel, backend: Backend) -> list[dict[str, Any]]:
    """As many samples as one step takes; every step sees the same ones, so that the loss must fall."""
    samples = settings["micro_batch"] * case["batch"]
    ids = backend.integers(samples * settings["seq"], spec.vocab).view(samples, settings["seq"]).cpu()
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


def _clock(transformers: Any, backend: Backend) -> Any:
    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """Seconds from one step's end to the next's; the first from the beginning of the training."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._stop: Callable[[], float] = lambda: 0.0

        def on_train_begin(self, *_: object, **__: object) -> None:
            self._begin()

        def on_step_end(self, *_: object, **__: object) -> None:
            backend.synchronize()
            self.seconds.append(self._stop())
            self._begin()

        def _begin(self) -> None:
            self._stop = backend.start_host_timer()

    return Clock()
