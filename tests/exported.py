"""Exports read back: a launch line as options, and plans of all kinds to export, priced by nobody."""

import random
import shlex
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

from costmodels.plan import ExecutionPlan, PlanBatch
from planner.exporters.exported import Exported
from planner.question.pins import parse_pins
from planner.question.request import Options, part_of, resolve_request, setting_of
from planner.results import Request
from planner.space.constraints import check_plan
from planner.space.enumeration import plan_space

# Format, model, cluster, framework: what each target is for.
QUESTIONS = (
    ("megatron_lm", "llama-2-13b", "2x8xA100-80GB", "megatron"),
    ("megatron_lm", "mixtral-8x7b", "4x8xH100", "megatron"),
    ("megatron_lm", "deepseek-v2-lite", "2x8xH100", "megatron-core-hybrid-ep"),
    ("megatron_lm", "gpt3-13b", "2x8xA100-80GB", "megatron"),
    ("megatron_bridge", "llama-3-8b", "2x8xH100", "megatron"),
    ("megatron_bridge", "mixtral-8x7b", "4x8xH100", "megatron"),
    ("megatron_bridge", "deepseek-v2-lite", "2x8xH100", "megatron-core-hybrid-ep"),
    ("deepspeed", "llama-2-7b", "2x8xA100-80GB", "deepspeed"),
    ("deepspeed", "llama-2-7b", "8xA100-80GB", "huggingface"),
    ("accelerate", "llama-2-7b", "2x8xA100-80GB", "fsdp"),
    ("accelerate", "llama-2-7b", "8xA100-80GB", "huggingface"),
    ("torchtitan", "llama-3.1-8b", "2x8xH100", "fsdp"),
    ("torchtitan", "qwen3-30b-a3b", "2x8xH100", "fsdp-eager"),
    ("nanotron", "llama-2-7b", "2x8xA100-80GB", "nanotron"),
    ("nanotron", "qwen2.5-7b", "8xH100", "nanotron"),
    ("axolotl", "llama-2-7b", "8xA100-80GB", "huggingface"),
    ("axolotl", "llama-2-7b", "2x8xA100-80GB", "deepspeed"),
    ("llama_factory", "llama-2-7b", "8xA100-80GB", "huggingface"),
    ("llama_factory", "llama-2-7b", "2x8xA100-80GB", "deepspeed"),
    ("trl", "llama-2-7b", "8xA100-80GB", "hf-trainer"),
    ("trl", "llama-2-7b", "2x8xA100-80GB", "hf-trainer-compiled"),
)
# Framework, model, cluster: questions whose best plans are of many kinds, of models that the formats know.
BEST = (
    ("megatron", "llama-3-70b", "8xH100"),
    ("megatron", "glm-4.5", "64x8xH100"),
    ("megatron", "deepseek-v2-lite", "2x8xH100"),
    ("megatron", "llama-3-8b", "1xH100"),
    ("fsdp", "llama-3.1-8b", "8xH100"),
    ("fsdp", "deepseek-v3", "64x8xH100"),
    ("fsdp", "qwen3-30b-a3b", "2x8xH100"),
    ("deepspeed", "llama-3-8b", "8xA100-80GB"),
    ("huggingface", "qwen2.5-32b", "8xA100-80GB"),
    ("huggingface", "llama-3-8b", "2x8xH100"),
)
# The formats of a framework; of several, one that says a plan is enough.
_FORMATS = {
    "megatron": ("megatron_lm",),
    "fsdp": ("torchtitan", "accelerate"),
    "deepspeed": ("deepspeed",),
    "huggingface": ("accelerate", "deepspeed"),
}


def request_of(model: str, cluster: str, framework: str, **job: Any) -> Request:
    """The question, its batch and length as given or as usual."""
    return resolve_request(model, cluster, job, None, Options(framework=framework))


def plan_of(request: Request, **pins: Any) -> ExecutionPlan:
    """A plan of those fields, the rest as the default; the framework would accept it."""
    codes = parse_pins(pins)
    degrees = [codes.get(f"{name}_parallel", 1) for name in ("tensor", "pipeline", "context")]
    codes.setdefault("data_parallel", request.cluster.num_devices // (degrees[0] * degrees[1] * degrees[2]))
    samples = request.job.global_batch_size // codes["data_parallel"]
    codes.setdefault("num_microbatches", samples // codes.get("micro_batch_size", 1))
    plan = PlanBatch.from_columns(1, **codes).plan(0)
    check_plan(plan, setting_of(request))
    return plan


def export(format_: str, plan: ExecutionPlan, request: Request) -> Exported:
    """What the module of that format makes of a plan, gaps and all."""
    exported: Exported = import_module(f"planner.exporters.{format_}").export(plan, request)
    return exported


def export_refusals(plan: ExecutionPlan, request: Request) -> list[str]:
    """What every format of the request's framework lacks for a plan; nothing where one of them says all of it."""
    used = replace(request, cluster=part_of(request.cluster, plan.num_devices))
    found: list[str] = []
    for format_ in _FORMATS[request.stack.framework]:
        missing = export(format_, plan, used).unsupported
        if not missing:
            return []
        found += [f"{format_}: {gap.field}: {gap.problem}" for gap in missing]
    return found


@cache
def legal_plans(model: str, cluster: str, framework: str) -> tuple[Request, PlanBatch]:
    """A question of a small batch, and every plan for it."""
    request = request_of(model, cluster, framework, sequence_length=2048, global_batch_size=96)
    found = plan_space(setting_of(request), domain_devices=8, offload=True, named_modules=framework == "megatron")
    return request, found.plans


def some_plans(count: int, *question: str) -> list[tuple[ExecutionPlan, Request]]:
    """A few of these plans, the same ones every time."""
    request, plans = legal_plans(*question)
    rows = random.Random(7).sample(range(len(plans)), min(count, len(plans)))
    return [(plans.plan(row), request) for row in rows]


def options(words: str | list[str], *, values: int | None = None) -> dict[str, list[str]]:
    """Option to its values; what is no option's value goes under ''."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for word in shlex.split(words) if isinstance(words, str) else words:
        if word.startswith("--"):
            name = word
            found[name] = []
        elif values is not None and len(found[name]) >= values and name:
            found[""].append(word)
        else:
            found[name].append(word)
    return found


def overrides(words: list[str]) -> dict[str, str]:
    """Field to value, of words that override fields."""
    return dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("-"))


def script_words(exported: Exported) -> list[str]:
    """The launch line as the script has it, which is what runs, without the user's own arguments."""
    lines = exported.files["train.sh"].replace("\\\n", " ").splitlines()
    (line,) = [line.removeprefix("exec ") for line in lines if line.startswith("exec ")]
    return [word for word in shlex.split(line) if word != "$@"]
