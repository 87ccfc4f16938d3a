"""The graph service: snapshots and embeddings over Arrow Flight."""
