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
    tools: list[str] = Field(description="Names of tools that run it, which are taken for it.")


class FrameworkList(BaseModel):
    """Every framework that plans can be made for."""

    schema_version: str
    frameworks: list[FrameworkView]


class WorkflowView(BaseModel):
    """A workflow as `job` of `POST /plan` names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    source: str
    roles: list[str] = Field(description="Which `models` may name.")
    calls: list[str] = Field(description="Which `pins` may name.")
    settings: dict[str, bool | int | float | str | None] = Field(description="What `settings` may say, and defaults.")


class WorkflowList(BaseModel):
    """Every workflow known by name."""

    schema_version: str
    workflows: list[WorkflowView]


class EngineView(BaseModel):
    """An engine as `engine` of `POST /serving` and of a workflow names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    splits_stages: bool = Field(description="Whether layers can be split over pipeline stages.")
    disaggregates: bool = Field(description="Whether prompts can be read by replicas of their own.")
    speculates: list[str] = Field(description="Methods of speculative decoding it has.")
    memory_utilization: float = Field(description="Share of the device's memory it uses unless told otherwise.")
    max_sequences: int = Field(description="Most sequences a replica runs at once unless told otherwise.")
    prefill_tokens: int = Field(description="Most prompt tokens of one step unless told otherwise.")


class EngineList(BaseModel):
    """Every engine known by name."""

    schema_version: str
    engines: list[EngineView]


class NodeView(BaseModel):
    """A node as `node` of a cluster names it; its fields are those of a cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    device: str
    gpus_per_node: int
    domain_devices: int
    scale_up: str
    fabric: str
    nics_per_node: int
    host_link: str
    host_memory_bytes: float
    source: str


class NodeList(BaseModel):
    """Every node known by name."""

    schema_version: str
    nodes: list[NodeView]


class LinkView(BaseModel):
    """A link as `scale_up`, `fabric` and `host_link` of a cluster name it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: str
    bandwidth_bytes_per_s: float = Field(description="Per direction; of a fabric, of one adapter.")
    latency_s: float
    peer_to_peer: bool = Field(description="Whether devices reach each other without the host's memory.")
    source: str


class LinkList(BaseModel):
    """Every link known by name."""

    schema_version: str
    links: list[LinkView]
