"""Plans that a framework takes only because it takes any layout of layers over the chunks of a pipeline."""

from dataclasses import replace

from costmodels.plan import ExecutionPlan, PlanBatch
from planner.question.request import part_of, setting_of
from planner.results import Request
from planner.space.constraints import legal


def needs_layout(plan: ExecutionPlan, request: Request) -> bool:
    """Whether layers have to be laid out by hand: told so, or they do not divide over stages and chunks.

    Args:
        plan: A legal plan.
        request: Its model, cluster and stack.
    """
    if plan.stage_layers:
        return True
    chunks = plan.pipeline_parallel * plan.virtual_stages
    ends = plan.first_stage_layers or plan.last_stage_layers
    if not request.stack.free_layout or (request.model.num_layers % chunks == 0 and not ends):
        return False
    used = part_of(request.cluster, plan.num_devices)
    return not legal(PlanBatch.from_plans([plan]), replace(setting_of(request, used), free_layout=False))[0]
