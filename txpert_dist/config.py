"""The whole run in one typed tree.

Enters: values of the user. Leaves: one frozen ``Config`` whose values fit each other; the docstring below a
key is its help text. Derived values are properties, never fields. ``config_file`` reads and writes it.
"""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

ControlMatching = Literal["random", "matched", "mean", "matched_mean"]
"""How a cell finds its control: one of the cell line, one of the batch, the line's mean, the batch's mean."""

Probability = Annotated[float, Field(ge=0, lt=1)]


def _workers(value: object) -> int | tuple[int, int]:
    """One number of workers, or the fewest and the most; one message for whatever is neither."""
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    if len(whole) == len(numbers) == 1:
        return whole[0]
    if len(whole) == len(numbers) == 2 and whole[0] <= whole[1]:
        return whole[0], whole[1]
    raise ValueError("must be a number of workers, or [fewest, most]")


Workers = Annotated[int | tuple[int, int], BeforeValidator(_workers)]
"""A number of workers, or the fewest and the most."""


def _or_kind(default: str) -> BeforeValidator:
    """A variant whose ``kind`` is left out is the default one."""
    return BeforeValidator(
        lambda value: {"kind": default, **value} if isinstance(value, dict) and "kind" not in value else value
    )


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
    """Also learn to reconstruct control cells, as the methods do."""
    held_out_cell_lines: tuple[str, ...] = ()
    """Cell lines whose perturbed cells are neither trained nor validated on; their controls are."""
    sampling: Literal["cells", "perturbations", "weights"] = "cells"
    """Every cell once an epoch, every perturbation equally often, or cells by the numbers of weight_key."""
    weight_key: str | None = None
    """Numeric column of the store's obs: how often each cell is drawn, in proportion."""
    chunk: PositiveInt = 1024
    """Consecutive cells that one read fetches."""
    window: PositiveInt = 16
    """Chunks whose cells are shuffled together."""
    reading_threads: PositiveInt = 2
    """Threads of a worker that read and decode the next window; what they deliver does not depend on it."""

    @model_validator(mode="after")
    def _weights_are_named(self) -> "Data":
        if self.sampling == "weights" and self.weight_key is None:
            raise ValueError("sampling=weights needs weight_key, the column of obs that holds the weights")
        if self.sampling != "weights" and self.weight_key is not None:
            raise ValueError(f"weight_key is used with sampling=weights only, not {self.sampling}; remove it")
        return self


class Graph(Section):
    """Which knowledge-graph snapshot the perturbation encoder sees."""

    location: str
    """Folder of snapshots that `txpert graph build` wrote, or grpc://HOST:PORT (grpc+tls://) of a service."""
    snapshot: str | None = None
    """Snapshot id; may be left out when the location holds exactly one."""
    tls_roots: Path | None = None
    """PEM file of who signed the service's certificate; the system's authorities when left out."""
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


class EmbeddingBasal(Section):
    """Basal state from an embedding of the control cell that was computed elsewhere: s = MLP(embedding)."""

    kind: Literal["embedding"] = "embedding"
    """Chooses this variant."""
    key: str
    """Embedding in the cell store (obsm), e.g. X_scvi or X_scgpt."""
    hidden: PositiveInt = 512
    """Width of the hidden layer."""


class VaeBasal(Section):
    """Variational basal state: drawn from N(mean(x), variance(x)) in training, the mean otherwise."""

    kind: Literal["vae"] = "vae"
    """Chooses this variant."""
    hidden: PositiveInt = 512
    """Width of the hidden layer."""
    divergence_weight: NonNegativeFloat = 1.0
    """Of the Kullback-Leibler term; 1 is the evidence bound of a Gaussian of unit variance per gene."""
    annealing_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of all steps over which that weight rises linearly from 0."""


Skip = Literal["concat", "sum", "concat_learned", "sum_learned", "none"]
NormKind = Literal["batch", "layer", "none"]
Positional = Literal["none", "random_walk", "laplacian"]


class GraphLayers(Section):
    """What encoders made of graph layers have in common."""

    layers: PositiveInt = 4
    """Rounds of message passing."""
    node_features: PositiveInt = 128
    """Width of the learned input embedding of every node."""
    hidden: PositiveInt = 128
    """Width of a layer, of one head where there are heads."""
    dropout: Probability = 0.2
    """After every layer, the same on all workers."""
    self_loops: bool = True
    """Every gene also passes its message to itself."""
    reverse_edges: bool = False
    """Also pass messages from target to source."""
    edge_weights: bool = False
    """Use the graphs' weights, each graph's divided by its largest; otherwise every edge is alike."""
    skip: Skip = "concat"
    """How a layer's input joins its output; the learned kinds map it linearly first."""
    norm: NormKind = "none"
    """Normalisation of each layer's output, over all nodes (batch) or each node's values (layer)."""
    positional: Positional = "none"
    """Positional encodings that the snapshot holds, mapped linearly and added to the node features."""


class Attention(GraphLayers):
    """What encoders made of graph attention have in common."""

    version: Literal[1, 2] = 2
    """GAT (1) scores source and target apart, GATv2 (2) together."""
    heads: PositiveInt = 2
    """Attention heads of a layer."""
    combine_heads: Literal["concat", "mean"] = "concat"
    """How the heads of a layer join."""
    attention_dropout: Probability = 0.0
    """Dropout on the attention weights, the same on all workers."""

    @model_validator(mode="after")
    def _skip_fits(self) -> "Attention":
        width = self.hidden * (self.heads if self.combine_heads == "concat" else 1)
        if self.skip == "sum" and width % self.node_features:
            raise ValueError(
                f"skip=sum repeats the node_features={self.node_features} inputs to fill a layer of {width}, "
                "which is no multiple; choose another width, or skip=sum_learned"
            )
        return self


class Gat(Attention):
    """Graph attention over the union of the knowledge graphs."""

    kind: Literal["gat"] = "gat"
    """Chooses this variant."""


class GatHybrid(Attention):
    """One graph attention encoder for each knowledge graph, and one that weighs them for every gene."""

    kind: Literal["gat_hybrid"] = "gat_hybrid"
    """Chooses this variant."""
    combine_graphs: Literal["attention", "concat"] = "attention"
    """Attention over the graphs, gene by gene, or a perceptron on all of them side by side."""


class GatMlg(Attention):
    """Graph attention over the multilayer graph: one layer a knowledge graph, a gene's copies coupled."""

    kind: Literal["gat_mlg"] = "gat_mlg"
    """Chooses this variant."""
    reference: str | None = None
    """Knowledge graph whose copy of a gene is its embedding; the first one used when left out."""
    structure: PositiveInt = 64
    """Width of the structural module, which embeds the weights of each node's incoming edges."""


class Gcn(GraphLayers):
    """Graph convolution over the union of the knowledge graphs: fixed weights in place of attention."""

    kind: Literal["gcn"] = "gcn"
    """Chooses this variant."""

    @model_validator(mode="after")
    def _skip_fits(self) -> "Gcn":
        if self.skip == "sum" and self.hidden % self.node_features:
            raise ValueError(
                f"skip=sum repeats the node_features={self.node_features} inputs to fill a layer of "
                f"{self.hidden}, which is no multiple; choose another width, or skip=sum_learned"
            )
        return self


class Transformer(Section):
    """What the sparse graph transformers have in common."""

    layers: PositiveInt = 4
    """Rounds of attention and feed-forward."""
    hidden: PositiveInt = 128
    """Width of the node features and of a layer, all heads together."""
    heads: PositiveInt = 2
    """Attention heads of a layer."""
    dropout: Probability = 0.1
    """On every branch, the same on all workers."""
    self_loops: bool = True
    """Every gene also attends to itself."""
    reverse_edges: bool = True
    """Also attend from source to target, as edges of their own type."""
    expander_cycles: NonNegativeInt = 3
    """Random cycles of the snapshot's expander to attend along; each gives every gene two neighbours."""
    virtual_nodes: NonNegativeInt = 0
    """Extra nodes connected with every gene, both ways."""
    local: bool = True
    """A GATv2 branch over the knowledge graphs' own edges, heads averaged, in every layer."""
    edge_map: Literal["linear", "mlp"] = "linear"
    """How a layer reads the edge features: a linear map, or a perceptron that also refines them."""
    gate_values: bool = False
    """Multiply the messages with a linear map of the edge features."""
    edge_weights: bool = False
    """Add a map of the graphs' weights to the edge features."""
    norm: NormKind = "batch"
    """Normalisation after each branch; batch is over all nodes."""
    positional: Positional = "none"
    """Positional encodings that the snapshot holds, mapped linearly and added to the node features."""

    @model_validator(mode="after")
    def _heads_fit(self) -> "Transformer":
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} cannot be shared equally by heads={self.heads}")
        return self


class Exphormer(Transformer):
    """Sparse graph transformer over the union of the knowledge graphs and expander edges."""

    kind: Literal["exphormer"] = "exphormer"
    """Chooses this variant."""


class ExphormerMg(Transformer):
    """Exphormer that knows which knowledge graphs propose an edge."""

    kind: Literal["exphormer_mg"] = "exphormer_mg"
    """Chooses this variant."""
    provenance: Literal["multihot", "type"] = "multihot"
    """One edge with the sum of its sources' features, or parallel edges, one a source."""


class HybridBmp(Section):
    """One round of message passing over the union, with one input table a direction."""

    kind: Literal["hybrid_bmp"] = "hybrid_bmp"
    """Chooses this variant."""
    node_features: PositiveInt = 128
    """Width of both learned input embeddings."""
    hidden: PositiveInt = 128
    """Width of the perceptron after the message passing."""
    dropout: Probability = 0.2
    """In that perceptron, the same on all workers."""
    self_loops: bool = False
    """Every gene also counts as its own neighbour."""
    average: bool = False
    """Average over the neighbours of each direction in place of the sum."""


class Embedding(Section):
    """No graph: a learned embedding of every gene, the control experiment of all the others."""

    kind: Literal["embedding"] = "embedding"
    """Chooses this variant."""
    node_features: PositiveInt = 128
    """Width of the learned embedding."""
    dropout: Probability = 0.2
    """After the linear map to the latent width, the same on all workers."""


Basal = MlpBasal | IdentityBasal | EmbeddingBasal | VaeBasal
"""Configurations of a basal encoder."""

Perturbation = Gat | GatHybrid | GatMlg | Gcn | Exphormer | ExphormerMg | HybridBmp | Embedding
"""Configurations of a perturbation encoder."""


class AdditiveFusion(Section):
    """The state and the embeddings of the perturbations add up."""

    kind: Literal["additive"] = "additive"
    """Chooses this variant."""


class SequentialFusion(Section):
    """A learned transition s' = T(s, z) for one perturbation after the other."""

    kind: Literal["sequential"] = "sequential"
    """Chooses this variant."""
    hidden: PositiveInt = 128
    """Width of the transition's hidden layer."""
    order: Literal["by_name", "all"] = "all"
    """Perturb in the order of the genes' names, or average the outcomes of all orders."""


Fusion = AdditiveFusion | SequentialFusion
"""Configurations of how basal state and perturbation embeddings meet."""


class Decoder(Section):
    """From latent to expression: one hidden layer."""

    hidden: PositiveInt = 512
    """Width of the hidden layer."""
    activation: Literal["none", "softplus"] = "none"
    """softplus keeps predicted expression above 0."""


class Model(Section):
    """TxPert: basal encoder + perturbation encoder + fusion + decoder."""

    latent: PositiveInt = 64
    """Width d of basal state s and perturbation embedding z."""
    basal: Annotated[Basal, Field(discriminator="kind"), _or_kind("mlp")] = MlpBasal()
    perturbation: Annotated[Perturbation, Field(discriminator="kind"), _or_kind("gat")] = Gat()
    fusion: Annotated[Fusion, Field(discriminator="kind"), _or_kind("additive")] = AdditiveFusion()
    decoder: Decoder = Decoder()
    control_token: Literal["none", "learned"] = "none"
    """learned adds one more embedding to cells with at most one perturbation, as the public code does."""
    norm: NormKind = "batch"
    """Normalisation in basal encoder and decoder; batch statistics are global over workers."""
    dropout: Probability = 0.2
    """Dropout in basal encoder and decoder."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "Model":
        if self.basal.kind == "identity" and self.decoder.activation == "softplus":
            raise ValueError(
                "basal.kind=identity adds the decoder's output to the control, which must be able to fall; "
                "decoder.activation=softplus lets it only rise: choose activation none or another basal kind"
            )
        return self


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
    accumulation: PositiveInt = 1
    """Parts a minibatch is taken in, one after the other, to save memory; each has its own batch norm."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """tf32 multiplies matrices with 10 bits of mantissa, on GPUs that can, and is fp32 elsewhere; bf16
    computes in bfloat16 where it is safe. Parameters stay fp32."""
    log_every: PositiveInt = 10
    """Steps between two metric records."""
    profile_steps: tuple[PositiveInt, PositiveInt] | None = None
    """First and last step that torch's profiler looks at, on the first worker; its trace goes to MLflow."""
    checkpoint_every_epochs: PositiveInt = 1
    """Epochs between two checkpoints; a new best is always kept."""
    checkpoint_every_steps: PositiveInt | None = None
    """Also write a checkpoint after so many steps, within epochs too; left out: after epochs only."""
    keep_checkpoints: PositiveInt = 2
    """Most recent checkpoints that stay, the best one besides."""
    checkpoint_mirror: str | None = None
    """URL (s3://bucket/folder) that keeps the checkpoints too; an empty machine takes them from there."""
    stop_deadline_s: PositiveFloat = 60.0
    """Seconds for a last checkpoint once the run is told to stop (SIGTERM, Ctrl-C); then it just ends."""

    @model_validator(mode="after")
    def _parts_have_cells(self) -> "Train":
        if self.accumulation > self.minibatch_size:
            raise ValueError(
                f"accumulation={self.accumulation} is more parts than minibatch_size={self.minibatch_size} "
                "has cells; lower it"
            )
        return self


class Cluster(Section):
    """The workers."""

    num_workers: Workers = 1
    """Data-parallel workers, sharing each minibatch equally; [fewest, most]: as many as there is room for."""
    resize_interval_s: PositiveFloat = 60.0
    """With [fewest, most] workers: seconds between two looks at whether there is room for others."""
    cpus_per_worker: PositiveInt = 1
    """CPUs that Ray reserves for each."""
    use_gpu: bool = False
    """One GPU for each worker."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: 0 shards nothing, 1 the optimiser state, 2 gradients as well, 3 parameters too. For
    models far larger than TxPert's own, whose steps it makes slower and whose memory it does not save."""
    offload_optimizer: bool = False
    """Keep the optimiser's state, and take its steps, in the host's memory; with zero_stage 1 to 3."""
    partition_nodes: bool = False
    """Workers divide the graph's nodes, and exchange them layer by layer: for workers that NVLink connects.
    A run of several workers says at its beginning what it takes with and without."""
    cuda_graph: bool = False
    """Hold the graph encoder's forward and backward in CUDA graphs, so that nothing waits for launches, and
    run them beside the cells' basal encoder. Needs use_gpu; written, but not yet run on a GPU."""
    graph_service: bool = False
    """Serve the graphs inside the Ray cluster, once a node: for run folders on slow storage."""
    graph_cache: Path | None = None
    """Folder on each node for these graphs; txpert-graphs-USER in the temporary folder when left out."""
    max_failures: NonNegativeInt = 1
    """Worker failures after which the run gives up; each restarts from the last checkpoint."""

    @model_validator(mode="after")
    def _state_is_sharded_to_be_offloaded(self) -> "Cluster":
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        return self

    @model_validator(mode="after")
    def _shares_need_whole_parameters(self) -> "Cluster":
        if self.partition_nodes and self.zero_stage == 3:
            raise ValueError("partition_nodes needs whole parameters; choose zero_stage 0, 1 or 2")
        return self

    @model_validator(mode="after")
    def _a_cuda_graph_holds_one_gpus_work(self) -> "Cluster":
        for excluded, instead in (
            (not self.use_gpu, "runs on GPUs; set use_gpu=true, or leave it out"),
            (self.zero_stage == 3, "needs whole parameters; choose zero_stage 0, 1 or 2"),
            (self.partition_nodes, "holds no exchange between workers; leave out partition_nodes or it"),
        ):
            if self.cuda_graph and excluded:
                raise ValueError(f"cuda_graph {instead}")
        return self

    @property
    def possible_workers(self) -> range:
        """Numbers of workers that the run may have, ascending."""
        fewest, most = (
            self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)
        )
        return range(fewest, most + 1)


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
    def _parts_meet_whole_parameters(self) -> "Config":
        if self.train.accumulation > 1 and self.cluster.zero_stage == 3:
            raise ValueError(
                f"train.accumulation={self.train.accumulation} takes gradients of whole parameters, which "
                "cluster.zero_stage=3 shards; choose zero_stage 2 or accumulation 1"
            )
        return self

    @model_validator(mode="after")
    def _there_are_layers_to_divide(self) -> "Config":
        kind = self.model.perturbation.kind
        if self.cluster.partition_nodes and kind in ("embedding", "hybrid_bmp"):
            raise ValueError(
                f"cluster.partition_nodes: model.perturbation.kind={kind} has no layers that workers could "
                "divide; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _workers_share_the_minibatch(self) -> "Config":
        size, workers = self.train.minibatch_size, self.cluster.possible_workers
        if any(size % number for number in workers):
            shown = workers[0] if len(workers) == 1 else [workers[0], workers[-1]]
            raise ValueError(
                f"train.minibatch_size={size} cannot be shared equally by cluster.num_workers={shown}; "
                f"choose a multiple of {math.lcm(*workers)}"
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
