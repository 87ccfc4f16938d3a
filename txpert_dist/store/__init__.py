"""The on-disk cell store."""
