"""TxPert as plain torch modules."""
