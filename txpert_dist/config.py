"""The whole run in one typed tree: defaults < one YAML file < ``section.key=value``.

Enters: a file and overrides. Leaves: one frozen ``Config``. Unknown keys are refused with the nearest known
one. Derived values are properties, never fields.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from txpert_dist.errors import ConfigError

ControlMatching = Literal["random", "matched", "mean", "matched_mean"]
"""How a cell finds its control: one of the cell line, one of the batch, the line's mean, the batch's mean."""

Probability = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the tree: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class Data(Section):
    """Which cells are read, and how each finds its control."""

    store: Path
    """The cell store that `txpert ingest` wrote."""
    genes: Literal["selected", "all"] = "selected"
    """Train on the highly variable genes that ingest selected, or on every gene."""
    control_matching: ControlMatching = "matched_mean"
    """Control of each cell: random (cell line), matched (batch), mean (line), matched_mean (batch)."""
    controls_as_targets: bool = True
    """Also learn to reconstruct training control cells, as the methods do."""
    chunk: PositiveInt = 256
    """Consecutive cells that one read fetches."""
    window: PositiveInt = 64
    """Chunks whose cells are shuffled together."""


class Graph(Section):
    """Which knowledge-graph snapshot the perturbation encoder sees."""

    location: str
    """Folder of snapshots that `txpert graph build` wrote."""
    snapshot: str | None = None
    """Snapshot id; may be left out when the folder holds exactly one."""
    use: tuple[str, ...] | None = None
    """Names of the knowledge graphs to use; all of the snapshot's when left out."""


class MlpBasal(Section):
    """Basal state by a two-layer perceptron: s = MLP(x)."""

    kind: Literal["mlp"] = "mlp"
    """Chooses this variant."""
    hidden: PositiveInt = 512
    """Width of the hidden layer."""


class IdentityBasal(Section):
    """No basal encoder: the prediction is x + g(sum of z)."""

    kind: Literal["identity"] = "identity"
    """Chooses this variant."""


class Gat(Section):
    """Graph attention over the union of the knowledge graphs (GATv2), with learned node features."""

    kind: Literal["gat"] = "gat"
    """Chooses this variant."""
    layers: PositiveInt = 4
    """Rounds of message passing."""
    node_features: PositiveInt = 128
    """Width of the learned input embedding of every node."""
    hidden: PositiveInt = 128
    """Width of one head."""
    heads: PositiveInt = 2
    """Attention heads of a layer, concatenated."""
    dropout: Probability = 0.2
    """After every layer, the same on all workers."""
    self_loops: bool = True
    """Every gene also attends to itself."""
    reverse_edges: bool = False
    """Also pass messages from target to source."""
    skip: Literal["concat", "none"] = "concat"
    """Concatenate a layer's input to its output."""


class Decoder(Section):
    """From latent to expression: one hidden layer."""

    hidden: PositiveInt = 512
    """Width of the hidden layer."""


class Model(Section):
    """TxPert: basal encoder + perturbation encoder + additive fusion + decoder."""

    latent: PositiveInt = 64
    """Width d of basal state s and perturbation embedding z."""
    basal: MlpBasal | IdentityBasal = Field(default=MlpBasal(), discriminator="kind")
    perturbation: Gat = Gat()
    decoder: Decoder = Decoder()
    norm: Literal["batch", "layer", "none"] = "batch"
    """Normalisation in basal encoder and decoder; batch statistics are global over workers."""
    dropout: Probability = 0.2
    """Dropout in basal encoder and decoder."""


class Optimiser(Section):
    """AdamW with linear warm-up and cosine decay, counted in steps."""

    learning_rate: PositiveFloat = 1e-3
    """Reached at the end of the warm-up."""
    minimum_learning_rate: NonNegativeFloat = 0.0
    """Reached at the last step."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of all steps over which the learning rate rises linearly."""
    gradient_clipping: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


class Train(Section):
    """How long, how much at once, how often."""

    epochs: PositiveInt = 20
    """Passes over the training cells."""
    minibatch_size: PositiveInt = 64
    """Cells per optimiser step over all workers together: the result does not depend on their number."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16 where it is safe; parameters stay fp32."""
    log_every: PositiveInt = 10
    """Steps between two metric records."""
    checkpoint_every_epochs: PositiveInt = 1
    """Epochs between two checkpoints; a new best is always kept."""
    keep_checkpoints: PositiveInt = 2
    """Most recent checkpoints that stay, the best one besides."""


class Cluster(Section):
    """The workers."""

    num_workers: PositiveInt = 1
    """Data-parallel workers; they share each minibatch equally."""
    cpus_per_worker: PositiveInt = 1
    """CPUs that Ray reserves for each."""
    use_gpu: bool = False
    """One GPU for each worker."""
    zero_stage: Literal[0, 1, 2] = 1
    """DeepSpeed ZeRO: 0 shards nothing, 1 the optimiser state, 2 gradients as well."""
    max_failures: NonNegativeInt = 1
    """Worker failures after which the run gives up; each restarts from the last checkpoint."""


class Tracking(Section):
    """Where the run is recorded."""

    uri: str | None = None
    """MLflow tracking server; a SQLite file in the output folder when left out."""
    experiment: str = "txpert"
    """MLflow experiment that the run belongs to."""


class Config(Section):
    """One run: one configuration, one MLflow run, one checkpoint folder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "txpert"
    """Name of the run and of its folder; the same name resumes."""
    seed: NonNegativeInt = 0
    """Decides initial weights, the order of cells, dropout and control draws."""
    output: Path = Path("runs")
    """Folder that holds the run's folder."""
    data: Data
    graph: Graph
    model: Model = Model()
    optimiser: Optimiser = Optimiser()
    train: Train = Train()
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _workers_share_the_minibatch(self) -> "Config":
        if self.train.minibatch_size % self.cluster.num_workers:
            raise ValueError(
                f"train.minibatch_size={self.train.minibatch_size} cannot be shared equally by "
                f"cluster.num_workers={self.cluster.num_workers}; choose a multiple"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """Folder of this run's checkpoints and records."""
        return self.output / self.name

    @property
    def tracking_uri(self) -> str:
        """Where MLflow records go."""
        return self.tracking.uri or f"sqlite:///{(self.output / 'mlflow.db').absolute()}"


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration in ``path`` and apply ``section.key=value`` overrides.

    Raises ``ConfigError`` naming the file, the key and, for a misspelt key, the nearest known one.
    """
    tree = _read(path) if path else {}
    for item in overrides:
        _override(tree, item)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        where = str(path) if path else "command line"
        raise ConfigError(f"{where}: {_explain(error)}") from None


def dump(config: Config) -> str:
    """The resolved configuration as YAML; loading it again gives the same configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(config: Config) -> dict[str, str]:
    """Every leaf as ``section.key`` -> text, as MLflow parameters want it."""
    return dict(_leaves(config.model_dump(mode="json"), ""))


class KeyHelp(NamedTuple):
    """One key of the configuration, for people."""

    key: str
    default: str
    """As YAML; empty when the key must be given."""
    meaning: str


def describe(section: type[BaseModel] = Config, prefix: str = "") -> list[KeyHelp]:
    """Every key with its default and meaning, in the order of the tree; variants under their ``kind``."""
    keys = []
    for name, field in section.model_fields.items():
        kinds = _sections(field.annotation)
        for kind in kinds:
            label = f"{name}({_kind(kind)})" if len(kinds) > 1 else name
            keys += describe(kind, f"{prefix}{label}.")
        if not kinds:
            default = "" if field.is_required() else yaml.safe_dump(_plain(field.default)).split("\n...")[0]
            keys.append(KeyHelp(prefix + name, default.strip(), field.description or ""))
    return keys


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _kind(section: type[BaseModel]) -> str:
    return str(section.model_fields["kind"].default)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    options = getattr(annotation, "__args__", None) or (annotation,)
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a run configuration") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give the path of a YAML file") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        raise ConfigError(f"{path}:{line} is not YAML; check the indentation and quotes there") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold sections (data:, graph:, ...), not a {type(tree).__name__}")
    return tree


def _override(tree: dict[str, Any], item: str) -> None:
    dotted, separator, text = item.partition("=")
    if not separator or not dotted:
        raise ConfigError(f"override {item!r} is not of the form section.key=value")
    *parents, leaf = dotted.split(".")
    node = tree
    for key in parents:
        child = node.get(key)
        if not isinstance(child, dict):
            child = node[key] = {}
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {item!r}: the value is not YAML; quote it") from None


def _explain(error: ValidationError) -> str:
    return "; ".join(_explain_one(dict(e)) for e in error.errors())


def _explain_one(entry: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in entry["loc"])
    message = str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, _keys(Config), 1, 0.5)
        return f"{where}: no such key" + (f"; did you mean {near[0]}?" if near else "")
    if entry["type"] == "missing":
        return f"{where}: is needed and has no default; set it in the file or with {where}=..."
    return f"{where}: {message} (got {entry['input']!r})" if where else message


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for kind in _sections(field.annotation):
            keys += [f"{prefix}{name}.{key}" for key in _keys(kind)]
    return keys


def _leaves(node: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    leaves = []
    for key, value in node.items():
        if isinstance(value, dict):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((prefix + key, str(value)))
    return leaves
