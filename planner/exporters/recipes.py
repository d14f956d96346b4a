"""Which configuration of a framework a model is: that of a model of the catalogue that has the same shape."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TypeVar

from profiles.catalog import default_catalog
from profiles.model import ModelSpec
from profiles.model_presets import resolve_model

Recipe = TypeVar("Recipe")


def recipe_of(model: ModelSpec, recipes: Mapping[str, Recipe]) -> Recipe | None:
    """The configuration of a model of that shape, its own before that of another name; None where there is none.

    Args:
        model: The model.
        recipes: Model of the catalogue to its configuration.
    """
    shape = _shape(model)
    alike = [name for name, known in _shapes(tuple(recipes)).items() if known == shape]
    return recipes[model.name if model.name in alike else alike[0]] if alike else None


@cache
def _shapes(models: tuple[str, ...]) -> dict[str, ModelSpec]:
    catalog = default_catalog()
    return {name: _shape(resolve_model(name, catalog, allow_paths=False).spec) for name in models}


def _shape(model: ModelSpec) -> ModelSpec:
    return replace(model, name="", max_sequence_length=0, published_parameters=None, source="")
