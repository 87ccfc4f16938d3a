"""One run: loop, engine, checkpoints, tracking."""
