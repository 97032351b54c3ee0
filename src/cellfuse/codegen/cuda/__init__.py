"""CUDA kernels of a Program: CUDA C++ text, compiled by NVRTC. Importing it needs no GPU and no driver."""
