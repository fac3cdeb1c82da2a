"""Kernels in C++ for sampling on a CPU with AMX or AVX-512, and weights packed for them."""
