"""A plan's timeline as a picture: GPUs from top to bottom, time from left to right, one colour per call.

Plain SVG of our own, without scripts, so that it opens anywhere and can be put into a page.
"""

from html import escape

from planner.dataflow.flow.results import FlowPlan, Task
from planner.phrases import seconds

_WIDTH, _LEFT, _TOP, _RIGHT = 1200, 90, 40, 20
_HEIGHT = 480  # of the chart
_LEGEND_LINE, _LEGEND_COLUMN = 22, 200
_LEAST_LABEL = 44  # pixels a bar needs before a name fits into it
# Colour-blind safe, by Okabe and Ito (https://jfly.uni-koeln.de/color/), lightened where text stands on them.
_COLOURS = (
    "#56b4e9",
    "#e69f00",
    "#2fbf91",
    "#f0e442",
    "#cc79a7",
    "#d5703c",
    "#6f9fd8",
    "#a0a0a0",
    "#b9d66a",
    "#e3b6d0",
)
_TRANSFER = "#333333"


def timeline_svg(plan: FlowPlan, *, title: str) -> str:
    """The picture as text of an SVG file.

    Args:
        plan: The plan.
        title: Written above it.
    """
    names = [call.name for call in plan.calls if call.num_gpus]
    colour = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    lines = -(-(len(names) + 1) // ((_WIDTH - _LEFT) // _LEGEND_COLUMN))
    height = _TOP + _HEIGHT + 40 + lines * _LEGEND_LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">{escape(title)}</text>',
        *_axes(plan),
    ]
    for task in plan.tasks:
        parts += _bars(task, plan, colour)
    parts += _legend(names, colour)
    return "\n".join([*parts, "</svg>", ""])


def _x(time_s: float, plan: FlowPlan) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * time_s / max(plan.total_s, 1e-12)


def _y(gpu: float, plan: FlowPlan) -> float:
    return _TOP + _HEIGHT * gpu / plan.num_gpus


def _axes(plan: FlowPlan) -> list[str]:
    parts = [
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_HEIGHT}" fill="#f6f6f6" '
        'stroke="#999999"/>'
    ]
    for group in plan.memory:
        top = _y(group.first_gpu, plan)
        last = group.first_gpu + group.num_gpus - 1
        label = f"GPU {group.first_gpu}" if group.num_gpus == 1 else f"GPU {group.first_gpu}-{last}"
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{top:.1f}" y2="{top:.1f}" stroke="#cccccc"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{top + 12:.1f}" text-anchor="end" font-size="10">{label}</text>')
    for tick in range(6):
        time_s = plan.total_s * tick / 5
        place = _x(time_s, plan)
        anchor = {0: "start", 5: "end"}.get(tick, "middle")  # nothing hangs over the edge
        words = escape(seconds(time_s)) if tick else "0"
        parts.append(f'<text x="{place:.1f}" y="{_TOP + _HEIGHT + 16}" text-anchor="{anchor}">{words}</text>')
    return parts


def _bars(task: Task, plan: FlowPlan, colour: dict[str, str]) -> list[str]:
    left, width = _x(task.start_s, plan), _x(task.end_s, plan) - _x(task.start_s, plan)
    if width <= 0:
        return []
    parts = []
    words = f"{task.name}, iteration {task.iteration + 1}: {seconds(task.end_s - task.start_s)}"
    for first, count in task.meshes:
        top, height = _y(first, plan), _y(first + count, plan) - _y(first, plan)
        fill = colour.get(task.name, _TRANSFER)
        parts.append(
            f'<rect x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{fill}" '
            f'fill-opacity="0.85" stroke="white" stroke-width="0.5"><title>{escape(words)}</title></rect>'
        )
        if width >= _LEAST_LABEL and height >= 12 and task.name in colour:
            label = task.name[: int(width / 6.5)]
            parts.append(
                f'<text x="{left + width / 2:.1f}" y="{top + height / 2 + 4:.1f}" text-anchor="middle" '
                f'font-size="11">{escape(label)}</text>'
            )
    return parts


def _legend(names: list[str], colour: dict[str, str]) -> list[str]:
    parts = []
    columns = (_WIDTH - _LEFT) // _LEGEND_COLUMN
    for index, name in enumerate([*names, "what moves"]):
        x = _LEFT + index % columns * _LEGEND_COLUMN
        y = _TOP + _HEIGHT + 32 + index // columns * _LEGEND_LINE
        fill = colour.get(name, _TRANSFER)
        parts.append(f'<rect x="{x}" y="{y}" width="14" height="14" fill="{fill}"/>')
        parts.append(f'<text x="{x + 20}" y="{y + 12}">{escape(name)}</text>')
    return parts
