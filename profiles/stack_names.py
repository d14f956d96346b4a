"""What frameworks and stacks are called: short names, and tools that are no frameworks of their own."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# The stack a user of each framework most likely runs today.
DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "megatron": "megatron-core",
        "deepspeed": "deepspeed",
        "fsdp": "fsdp",
        "nanotron": "nanotron",
        "huggingface": "hf-trainer",
    }
)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that trains by what a stack describes.

    Attributes:
        stack: Its stack.
        reason: Why that one, and what stands for it set up otherwise.
        sixteen_bit_states: It tunes all weights without a master copy: gradients and moments are in their format.
    """

    stack: str
    reason: str
    sixteen_bit_states: bool = False


_TRAINER = "it runs Hugging Face's Trainer; with DeepSpeed's ZeRO it is framework deepspeed"
_TORCHTUNE = "it runs FSDP2, with compile: True, and without pipeline stages (pp 1), which torchtitan has"
_MEGATRON = "it runs Megatron-Core"
# Of docs/fine-tuning.md, and of what the descriptions of the stacks name.
TOOLS: Mapping[str, Tool] = MappingProxyType(
    {
        **dict.fromkeys(("trl", "peft", "transformers", "axolotl", "llama-factory"), Tool("hf-trainer", _TRAINER)),
        # All states are in the dtype of its recipes (full_finetune_single_device.py, full_finetune_distributed.py).
        "torchtune": Tool("fsdp", f"{_TORCHTUNE}; with compile: False it is framework fsdp-eager", True),
        "torchtitan": Tool("fsdp", "it runs FSDP2, with torch.compile; without it is framework fsdp-eager"),
        "fsdp2": Tool("fsdp", "FSDP2 with torch.compile; without it is framework fsdp-eager"),
        "openrlhf": Tool("deepspeed", "it runs DeepSpeed with Hugging Face's models"),
        "megatron-lm": Tool("megatron-core", _MEGATRON),
        "megatron-bridge": Tool("megatron-core", _MEGATRON),
        "nemo": Tool("megatron-core", "it runs Megatron-Core; NeMo AutoModel is framework nemo-automodel"),
    }
)
_SPELLINGS = {
    "llamafactory": "llama-factory",
    "mcore": "megatron-lm",
    "megatronlm": "megatron-lm",
    "hf": "transformers",
    "swift": "ms-swift",
    "nemorl": "nemo-rl",
}
# Tools that run several, none of which is the usual one.
_SEVERAL = {
    "ms-swift": "huggingface, or deepspeed for ZeRO, or megatron for megatron sft",
    "accelerate": "huggingface, or hf-trainer-fsdp for FSDP1, or deepspeed for ZeRO",
    "lightning": "litgpt, or fsdp, or deepspeed for ZeRO",
    "verl": "fsdp, or megatron",
    "nemo-rl": "fsdp, or megatron",
    "slime": "megatron, or fsdp",
}


_ENGINES = ("vllm", "sglang", "tensorrt-llm", "trtllm", "lmdeploy", "tgi", "llama.cpp", "ollama")


def tool_name(name: str) -> str:
    """A name of a tool as it stands here: small letters, with hyphens."""
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    return _SPELLINGS.get(key, key)


def stack_name(name: str) -> str:
    """The stack that a framework, a tool or a stack of that name stands for; anything else in small letters."""
    key = name.strip().lower()
    tool = TOOLS.get(tool_name(name))
    return DEFAULTS.get(key, tool.stack if tool else key)


def taken_as(name: str, stack: str) -> str:
    """What is to be said where the name of a tool was taken for that of a stack; empty where it was none.

    Args:
        name: As the user has it.
        stack: Name of the stack found for it, which a catalogue may have under the very name of a tool.
    """
    tool = TOOLS.get(tool_name(name))
    return f"{name.strip()} is taken as {stack}: {tool.reason}" if tool and tool.stack == stack else ""


def keeps_sixteen_bits(name: str) -> bool:
    """Whether a tool of that name tunes all weights without a master copy of them."""
    tool = TOOLS.get(tool_name(name))
    return tool is not None and tool.sixteen_bit_states


def runs_on(name: str) -> str:
    """The frameworks of which a tool runs one or another, or where engines are planned for; empty for other names."""
    tool = tool_name(name)
    return f"{tool} runs on {_SEVERAL[tool]}" if tool in _SEVERAL else serves(name)


def serves(name: str) -> str:
    """Where engines are planned for, of the name of one; empty for other names."""
    tool = tool_name(name)
    return f"{tool} serves models, and trains none: planner serving" if tool in _ENGINES else ""


def tools_of(stack: str) -> tuple[str, ...]:
    """Tools whose names are taken for a stack, in alphabetical order."""
    return tuple(sorted(name for name, tool in TOOLS.items() if tool.stack == stack))
