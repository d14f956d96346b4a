"""The catalogue as the service describes it in OpenAPI; ``planner.catalog_document`` fills it in."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class View(BaseModel):
    """Base of every answer: what it does not describe is not sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LinkView(View):
    """A connection; bandwidth per direction, per device for scale-up links and per adapter for networks."""

    name: str
    kind: str
    bandwidth_bytes_per_s: float
    latency_s: float
    peer_to_peer: bool
    source: str


class NodeView(View):
    """A host: its devices and what connects them."""

    name: str
    devices_per_node: int
    domain_devices: int = Field(description="Devices that reach each other over the scale-up link.")
    scale_up: LinkView
    nic: LinkView
    nics_per_node: int
    host_link: LinkView
    host_memory_bytes: float
    source: str


class DeviceView(View):
    """An accelerator; `sources` holds the document each figure was read from."""

    schema_version: int | str | None = None
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
    default_node: NodeView | None = Field(description="The node assumed when a cluster names only the device.")
    sources: dict[str, str]
    also_matches: list[str] = Field(default_factory=list, description="Other devices the name could mean.")


class ModelView(View):
    """A model; parameters are counted from its dimensions."""

    schema_version: int | str | None = None
    name: str
    parameters: int
    active_parameters: int = Field(description="Parameters one token passes through.")
    published_parameters: float | None
    source: str
    assumptions: list[str]
    dimensions: dict[str, Any] = Field(description="Named as in Hugging Face configurations.")


class ModelList(View):
    """Every model known by name."""

    schema_version: int | str
    models: list[ModelView]


class DeviceList(View):
    """Every device known by name."""

    schema_version: int | str
    devices: list[DeviceView]
