"""Perturbation encoders: a graph in, one latent vector a gene out."""
