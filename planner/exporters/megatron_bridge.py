"""Megatron-Bridge: overrides behind one of its recipes, for its ``scripts/training/run_recipe.py``.

Target: Megatron-Bridge 0.6 (tag v0.6.2), on megatron-core 0.19. What a plan asks of Megatron-Core ``megatron_lm``
decides; ``bridge_fields`` says it in fields. Its package needs Transformer Engine, and so a GPU, to be imported: tests
feed Megatron-Core's configurations where these are installed, and know the names of all fields that are written.
"""

from costmodels.plan import AxisOrder, ExecutionPlan, PlanBatch
from planner.exporters.bridge_fields import (
    attention_variables,
    overrides,
    precision,
    shape_defaults,
    with_defaults,
)
from planner.exporters.exported import (
    Check,
    Exported,
    Gap,
    Target,
    finished,
    gaps,
    on_every_node,
    torchrun,
    whole_steps,
)
from planner.exporters.megatron_lm import TARGET as MEGATRON_LM
from planner.exporters.megatron_lm import copied_weights, job_gaps, megatron_options, queues
from planner.exporters.megatron_lm import plan_checks as megatron_checks
from planner.exporters.megatron_model import model_gaps, shape_options
from planner.exporters.recipes import recipe_of
from planner.results import Request

TARGET = Target(name="megatron-bridge", title="Megatron-Bridge 0.6 (megatron-core 0.19)", stacks=MEGATRON_LM.stacks)
# Model of the catalogue to its recipe (src/megatron/bridge/recipes/*/*.py).
RECIPES = {
    "deepseek-v2": "deepseek_v2_pretrain_config",
    "deepseek-v2-lite": "deepseek_v2_lite_pretrain_config",
    "deepseek-v3": "deepseek_v3_pretrain_config",
    "gemma-2-2b": "gemma2_2b_pretrain_config",
    "gemma-2-9b": "gemma2_9b_pretrain_config",
    "gemma-2-27b": "gemma2_27b_pretrain_config",
    "glm-4.5": "glm45_355b_pretrain_config",
    "glm-4.5-air": "glm45_air_106b_pretrain_config",
    "gpt-oss-20b": "gpt_oss_20b_pretrain_config",
    "gpt-oss-120b": "gpt_oss_120b_pretrain_config",
    "gpt3-175b": "gpt3_175b_pretrain_config",
    "kimi-k2": "kimi_k2_pretrain_config",
    "llama-2-7b": "llama2_7b_pretrain_config",
    "llama-3-8b": "llama3_8b_pretrain_config",
    "llama-3-70b": "llama3_70b_pretrain_config",
    "llama-3.1-8b": "llama31_8b_pretrain_config",
    "llama-3.1-70b": "llama31_70b_pretrain_config",
    "llama-3.1-405b": "llama31_405b_pretrain_config",
    "llama-3.2-1b": "llama32_1b_pretrain_config",
    "llama-3.2-3b": "llama32_3b_pretrain_config",
    "moonlight-16b-a3b": "moonlight_16b_pretrain_config",
    "nemotron-3-nano-30b-a3b": "nemotron_3_nano_pretrain_config",
    "nemotron-3-super-120b-a12b": "nemotron_3_super_pretrain_config",
    "nemotron-3-ultra-550b-a55b": "nemotron_3_ultra_pretrain_config",
    "nemotron-h-8b": "nemotronh_8b_pretrain_config",
    "nemotron-h-47b": "nemotronh_47b_pretrain_config",
    "nemotron-h-56b": "nemotronh_56b_pretrain_config",
    "nemotron-nano-9b-v2": "nemotron_nano_9b_v2_pretrain_config",
    "nemotron-nano-12b-v2": "nemotron_nano_12b_v2_pretrain_config",
    "olmoe-1b-7b": "olmoe_7b_pretrain_config",
    "qwen2-0.5b": "qwen2_500m_pretrain_config",
    "qwen2-1.5b": "qwen2_1p5b_pretrain_config",
    "qwen2-7b": "qwen2_7b_pretrain_config",
    "qwen2-72b": "qwen2_72b_pretrain_config",
    "qwen2.5-0.5b": "qwen25_500m_pretrain_config",
    "qwen2.5-1.5b": "qwen25_1p5b_pretrain_config",
    "qwen2.5-7b": "qwen25_7b_pretrain_config",
    "qwen2.5-14b": "qwen25_14b_pretrain_config",
    "qwen2.5-32b": "qwen25_32b_pretrain_config",
    "qwen2.5-72b": "qwen25_72b_pretrain_config",
    "qwen3-0.6b": "qwen3_600m_pretrain_config",
    "qwen3-1.7b": "qwen3_1p7b_pretrain_config",
    "qwen3-4b": "qwen3_4b_pretrain_config",
    "qwen3-8b": "qwen3_8b_pretrain_config",
    "qwen3-14b": "qwen3_14b_pretrain_config",
    "qwen3-32b": "qwen3_32b_pretrain_config",
    "qwen3-30b-a3b": "qwen3_30b_a3b_pretrain_config",
    "qwen3-235b-a22b": "qwen3_235b_a22b_pretrain_config",
    "qwen3-next-80b-a3b": "qwen3_next_80b_a3b_pretrain_config",
}
# A bare model with the defaults of pretrain_gpt.py (recipes/gpt/h100/vanilla_gpt.py).
BARE = "vanilla_gpt_pretrain_config"
_ADAPTERS = "exports are written behind recipes that train all weights; its recipes of adapters are not among them"
_SCRIPT = "scripts/training/run_recipe.py"


def export(plan: ExecutionPlan, request: Request) -> Exported:
    """The launch of Megatron-Bridge that runs a plan: a recipe of the model, or a bare one and the model's shape.

    Args:
        plan: The plan.
        request: Model, job, the devices that the plan uses, and the stack it was priced for.
    """
    job, model, options = request.job, request.model, megatron_options(plan, request)
    recipe = recipe_of(model, RECIPES)
    steps = whole_steps(job)
    said = overrides(options) | precision(options)
    if recipe is None:
        said = overrides(shape_options(model)) | shape_defaults(model) | said
    else:
        said["model.mtp_num_layers"] = "null"  # what predicts further words is not priced
    if steps is not None:
        said |= {"train.train_iters": str(steps)}
    if plan.virtual_stages > 1:  # sends run under products then, as Megatron-LM's validate_args has it
        said |= {"model.overlap_p2p_comm": "true", "model.batch_p2p_comm": "false"}
    if job.fp8_activation:
        said |= {"model.activation_func_fp8_input_store": "true"}
    # Words that are drawn at random are as many as the model's, of which a recipe has a number of its own.
    said |= {"tokenizer.vocab_size": str(model.vocab_size)}
    said |= {"model.attention_backend": "null", "comm_overlap": "null"}  # or the recipe's would have the last word
    words = [[f"{field}={value}"] for field, value in with_defaults(said, model).items()]
    trial = ["scheduler.lr_warmup_iters=1", *([] if steps is not None else ["train.train_iters=20"])]
    return finished(
        TARGET,
        plan,
        request,
        command=[*torchrun(request.cluster), [_SCRIPT, "--recipe", recipe or BARE], *words],
        environment=queues(plan, request) | attention_variables(options),
        gaps=unsupported(plan, request),
        left_to_you=(*_yours(request, recipe), *copied_weights(plan, request), *on_every_node(request.cluster)),
        defaults=trial,
    )


def unsupported(plan: ExecutionPlan, request: Request) -> tuple[Gap, ...]:
    """What a plan, its job or its model has that the target cannot express."""
    job = request.job
    said = (
        (job.fp8_attention, "job.fp8_attention", "is not said", "leave it out"),
        (job.precision == "mxfp4", "job.precision", "mxfp4 is a recipe of AMD's libraries", "--format megatron-lm"),
    )
    checks = plan_checks(PlanBatch.from_plans([plan]), request)
    shape = _shape_gaps(request) if recipe_of(request.model, RECIPES) is None else ()
    return (*shape, *gaps(*checks), *job_gaps(request, _ADAPTERS), *gaps(*said))


def plan_checks(plans: PlanBatch, request: Request) -> tuple[Check, ...]:
    """What it has not, of plans: what Megatron-LM has not, and what ``ConfigContainer.validate`` refuses besides."""
    mapped = (plans.axis_order == int(AxisOrder.TP_CP_PP_DP)) & (plans.zero_stage > 1)
    return (
        *megatron_checks(plans, request),
        (mapped, "plan.axis_order", "Megatron-FSDP places pipeline stages outermost", "tp_cp_dp_pp"),
    )


def _shape_gaps(request: Request) -> tuple[Gap, ...]:
    """What no override of the bare recipe says: its layers are all alike, and of one class."""
    model = request.model
    mixed = model.moe is not None and model.num_moe_layers < model.num_layers
    positions = model.learned_positions not in (0, request.job.sequence_length)
    own = f"{BARE} has none, and no other recipe has this shape"
    return (
        *model_gaps(request),
        *gaps(
            (model.latent_attention is not None, "model.latent_attention", own, "--format megatron-lm"),
            (model.linear_attention is not None, "model.linear_attention", own, "--format megatron-lm"),
            (mixed, "model.num_moe_layers", "layers of the bare recipe are all alike", "--format megatron-lm"),
            (
                positions,
                "model.learned_positions",
                f"the table of positions is as long as the sequence; got {model.learned_positions}",
                f"sequence_length {model.learned_positions}",
            ),
        ),
    )


def _yours(request: Request, recipe: str | None) -> tuple[str, ...]:
    model, job = request.model, request.job
    steps = "" if job.train_tokens else "train.train_iters, "
    found = ["run train.sh where Megatron-Bridge is checked out: scripts/ is no part of its package"]
    found.append(
        f"data (dataset.data_path), tokenizer (tokenizer.*), {steps}learning rate (optimizer.lr) and checkpoints are "
        "overrides behind train.sh; without any it tries the plan on mock data"
    )
    if recipe is None:
        found.append(
            f"no recipe has the shape of {model.name}: {BARE} is told it; what does not change the cost, the base of "
            "rotary embeddings (model.rotary_base) and the epsilon of norms, it is not told"
        )
    else:
        found.append(f"the model as {recipe} has it, which reads its configuration from the Hugging Face Hub")
    if job.task == "full":
        found.append("the weights to start from: checkpoint.pretrained_checkpoint=DIR")
    return tuple(found)
