"""Kernels in C++ for sampling on a CPU with matrix units, and weights packed for them."""
