"""The catalogue as OpenAPI describes it; the documents themselves are those of ``planner.document_plan``."""

from pydantic import BaseModel, ConfigDict, Field


class ModelView(BaseModel):
    """A model: its dimensions, named as in Hugging Face configurations, and parameters counted from them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    total_parameters: int
    active_parameters: int = Field(description="Parameters one token passes through.")
    published_parameters: float | None
    source: str


class DeviceView(BaseModel):
    """An accelerator; `sources` holds the document each figure was read from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    vendor: str
    architecture: str
    peak_flops_per_s: dict[str, float] = Field(description="Dense peak by number format.")
    memory_bytes: float
    usable_memory_bytes: float
    memory_bandwidth_bytes_per_s: float
    num_sms: int
    l2_bytes: float
    power_w: float
    default_node: str = Field(description="The node assumed when a cluster names only the device.")
    sources: dict[str, str]


class ModelList(BaseModel):
    """Every model known by name."""

    schema_version: str
    models: list[ModelView]


class DeviceList(BaseModel):
    """Every device known by name."""

    schema_version: str
    devices: list[DeviceView]


class FrameworkView(BaseModel):
    """A framework as a request's `framework` names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    framework: str = Field(description="Whose rules apply.")
    default: bool = Field(description="Whether the name of the framework stands for it.")
    description: str
    switched_on_by: str = Field(description="Options that turn it on; empty where it is no setting of another.")


class FrameworkList(BaseModel):
    """Every framework that plans can be made for."""

    schema_version: str
    frameworks: list[FrameworkView]
