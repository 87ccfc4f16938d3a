"""The registry and predictions."""
