"""Models and baselines in, a report out."""
