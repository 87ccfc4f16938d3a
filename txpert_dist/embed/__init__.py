"""Embeddings of the cells of a store, computed elsewhere or here."""
