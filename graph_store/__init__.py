"""graph_store: knowledge graphs in, verified snapshots out. NumPy and Arrow only, never torch."""
