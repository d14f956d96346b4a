"""Whether an engine has code for what a model attends to, and kernels for it on a device."""

from profiles.engines import TRAINER, EngineSpec, load_engines
from profiles.errors import SpecError
from profiles.hardware import DeviceSpec
from profiles.linear_attention import KIND_TITLES
from profiles.model import ModelSpec


def check_engine(engine: EngineSpec, model: ModelSpec, device: DeviceSpec | None) -> EngineSpec:
    """The engine, which has code for what a model attends to, and kernels on the device.

    Raises:
        SpecError: If it has none.
    """
    compressed = model.compressed_attention is not None
    keys = "compressed keys" if compressed else "keys that an indexer chooses"
    if not engine.knows(model):
        linear = model.linear_attention
        what = keys if compressed else "an indexer that chooses keys" if linear is None else KIND_TITLES[linear.kind]
        problem = f"{engine.name} runs no model with {what}, as {model.name} has"
        raise SpecError("engine", problem, " or ".join(_knowing(model)))
    if device is not None and not engine.chooses_on(model, device):
        able = [name for name in _knowing(model) if load_engines()[name].chooses_on(model, device)]
        problem = f"{engine.name} has no kernels on {device.name} for {keys}, as {model.name} has"
        raise SpecError("engine", problem, " or ".join(able) or "a GPU of Hopper or data-centre Blackwell")
    return engine


def _knowing(model: ModelSpec) -> list[str]:
    """Engines that have code for a model."""
    return [name for name, engine in load_engines().items() if engine.knows(model) and name != TRAINER]
