"""Node embeddings: kept by version (``store``), searched (``neighbours``), compared (``alignment``)."""
