"""Models of the packaged catalogue."""

from profiles.catalog import default_catalog
from profiles.model import ModelSpec
from profiles.model_presets import resolve_model


def preset(name: str) -> ModelSpec:
    """The model of that name, never a file."""
    return resolve_model(name, default_catalog(), allow_paths=False).spec
