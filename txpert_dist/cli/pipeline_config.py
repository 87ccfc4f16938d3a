"""What a pipeline is told, as one typed tree: from files of a screen to a registered model.

Enters: one YAML file and overrides. Leaves: a frozen ``Pipeline``, with the recipe of the graphs in it.
Invariant: the run reads the store and the graphs that the pipeline makes, and no others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, model_validator

from graph_store import config as recipes
from graph_store.config import GraphConfig
from txpert_dist.config import Config, Section
from txpert_dist.config_file import load_as
from txpert_dist.ingest.config import IngestConfig


def _read_recipe(value: Any) -> Any:
    return recipes.load(Path(value)) if isinstance(value, str) else value


class Graphs(Section):
    """The knowledge graphs."""

    recipe: Annotated[GraphConfig, BeforeValidator(_read_recipe)]
    """The recipe itself, or the path of a graphs.yaml."""
    out: Path = Path("graphs")
    """Folder of snapshots."""


class Evaluation(Section):
    """How the run is scored."""

    split: Literal["train", "validation", "test"] = "test"
    """Perturbations to score."""
    seed: int = 0
    """Draws halves and fast-retrieval references."""


class Registration(Section):
    """How the model is registered."""

    name: str = "txpert"
    """Name of the registered model."""
    alias: str | None = None
    """Alias to move to this version, when it beats the baselines: champion, challenger."""
    force: bool = False
    """Move the alias even if a baseline is better."""


class Pipeline(Section):
    """Ingest, graphs, training, evaluation and registration of one run."""

    ingest: IngestConfig
    graphs: Graphs
    run: Config
    evaluate: Evaluation = Evaluation()
    registry: Registration = Registration()

    @model_validator(mode="before")
    @classmethod
    def _run_reads_what_is_made(cls, tree: Any) -> Any:
        """Fill in where the run finds its cells and graphs."""
        if not isinstance(tree, dict):
            return tree
        run, out = _section(tree.get("run")), _section(tree.get("graphs")).get("out", "graphs")
        run["data"] = {"store": _section(tree.get("ingest")).get("store"), **_section(run.get("data"))}
        run["graph"] = {"location": str(out), **_section(run.get("graph"))}
        return {**tree, "run": run}

    @model_validator(mode="after")
    def _run_reads_nothing_else(self) -> "Pipeline":
        if self.run.data.store != self.ingest.store:
            raise ValueError(
                f"run.data.store={self.run.data.store} is not what ingest.store={self.ingest.store} makes; "
                "leave it out"
            )
        if self.run.graph.location != str(self.graphs.out) or self.run.graph.snapshot is not None:
            raise ValueError("run.graph: location and snapshot are what graphs makes; leave them out")
        return self


def load_pipeline(file: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline; its paths hold in any working directory afterwards.

    Relative paths are relative to the working directory, those in a graphs.yaml to its folder. Raises
    ``ConfigError`` or ``GraphError`` naming the file and the key.
    """
    from txpert_dist.train.run_folder import absolute

    pipeline = load_as(Pipeline, file, overrides)
    return pipeline.model_copy(
        update={
            "ingest": _absolute(pipeline.ingest),
            "graphs": _absolute(pipeline.graphs),
            "run": absolute(pipeline.run),
        }
    )


def _section(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _absolute(value: Any) -> Any:
    """The same value with absolute paths in place of every relative one."""
    if isinstance(value, BaseModel):
        return value.model_copy(update={key: _absolute(item) for key, item in value})
    if isinstance(value, tuple):
        return tuple(_absolute(item) for item in value)
    return value.absolute() if isinstance(value, Path) else value
