"""Snapshots as pages to look at."""
