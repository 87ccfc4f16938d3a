"""What `txpert embed scvi` is told.

Enters: values from the command line. Leaves: one frozen ``ScviConfig``.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from txpert_dist.config import Section


class ScviConfig(Section):
    """How scVI is trained; the defaults are scvi-tools' own."""

    name: str = "X_scvi"
    """Of the embedding."""
    latent: PositiveInt = 10
    """Width of the embedding."""
    layers: PositiveInt = 1
    """Hidden layers of encoder and decoder."""
    hidden: PositiveInt = 128
    """Width of a hidden layer."""
    epochs: PositiveInt | None = None
    """Passes over the training cells; 400, fewer above 20,000 cells, when left out."""
    max_training_cells: PositiveInt = 100_000
    """Larger training sets are sampled."""
    genes: Literal["selected", "all"] = "selected"
    """The store's highly variable genes, or every gene."""
    seed: Annotated[NonNegativeInt, Field(lt=2**32)] = 0
    """Decides the sample, initial weights and the order of cells."""
    held_out_cell_lines: tuple[str, ...] = ()
    """Cell lines whose perturbed cells are not trained on; their controls are."""
    overwrite: bool = False
    """Replace an embedding of that name."""
