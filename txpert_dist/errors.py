"""Failures a user can act on.

Every message says what is wrong, where (file, column, row, gene) and what to do; the command line prints it
on one line and exits with 2. Anything else is a defect and shows a traceback.

TxPertError
├── ConfigError      a run configuration that cannot be used
├── InputError       a file, table or name given by the user that cannot be used
├── StoreError       a cell store that is missing, damaged or of another version
├── CheckpointError  a checkpoint or registered model that is missing, damaged or does not fit
└── TrainingError    training that cannot go on (for instance a loss that is not finite)
"""


class TxPertError(Exception):
    """The root of every failure that a user can act on."""


class ConfigError(TxPertError):
    """A run configuration that cannot be used; the message names the key."""


class InputError(TxPertError):
    """Input that cannot be used; the message names file and place."""


class StoreError(TxPertError):
    """A cell store that is missing, incomplete, damaged or of another version."""


class CheckpointError(TxPertError):
    """A checkpoint or registered model that is missing, damaged or does not fit the data."""


class TrainingError(TxPertError):
    """Training that cannot go on; the message names the step."""
