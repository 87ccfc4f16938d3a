"""txpert-dist: distributed training and serving of TxPert."""

__version__ = "0.1.0"
