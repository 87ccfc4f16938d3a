"""Graph-attention kernels behind one function."""
