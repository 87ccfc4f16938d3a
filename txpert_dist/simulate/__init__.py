"""Screens with known truth: a hidden gene network in, an h5ad, two knowledge graphs and the truth out."""
