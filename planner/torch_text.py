"""A ``torch.nn.Module`` as MLIR text, without running it and without its weights.

Needs the extra ``mlir-torch``. The module is exported on meta tensors with its parameters as arguments, so
that a model of any size takes seconds and no memory. Two texts can be had: the ``torch`` dialect, in which
fused operations such as attention stay whole, or the dispatches IREE's compiler makes of it.
"""

from importlib import import_module
from typing import Any

from profiles.errors import SpecError

_HINT = "pip install 'llm-execution-planner[mlir-torch]'"


def module_text(module: Any, *inputs: Any, dispatches: bool = False) -> str:
    """MLIR text of one forward pass, for ``price_mlir``.

    Args:
        module: A ``torch.nn.Module``; it is not changed.
        inputs: Its example inputs; only shapes and types matter.
        dispatches: Compile with IREE to its flow dispatches, one per fused kernel.

    Raises:
        SpecError: If the extra is not installed, or the module cannot be exported.
    """
    torch: Any = _need("torch")
    importer: Any = _need("torch_mlir.fx")
    parameters = {
        name: value.detach().to("meta") for name, value in (*module.named_parameters(), *module.named_buffers())
    }
    names = tuple(parameters)
    count = len(inputs)

    base: Any = torch.nn.Module

    class Functional(base):  # type: ignore[misc]
        def forward(self, *arguments: Any) -> Any:
            values = dict(zip(names, arguments[count:], strict=True))
            return torch.func.functional_call(module, values, arguments[:count])

    given = [value.to("meta") if isinstance(value, torch.Tensor) else value for value in inputs]
    try:
        exported = torch.export.export(Functional(), (*given, *parameters.values()))
        text = str(importer.export_and_import(exported, output_type="raw", decomposition_table={}))
    except SpecError:
        raise
    except Exception as error:  # whatever export says of the user's own module
        first = str(error).strip().partition("\n")[0]
        raise SpecError("module", f"cannot be exported: {first[:300]}", "see torch.export") from error
    return _dispatched(text) if dispatches else text


def _dispatched(text: str) -> str:
    compiler = _need("iree.compiler.tools")
    arguments = ["--compile-to=flow", "--iree-hal-target-device=cuda"]
    return bytes(compiler.compile_str(text, input_type="torch", extra_args=arguments)).decode()


def _need(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise SpecError("module", f"needs the package {name.partition('.')[0]}", _HINT) from None
