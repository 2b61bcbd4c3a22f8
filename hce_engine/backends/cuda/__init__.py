"""The CUDA back end: quantized members on Triton kernels, float members on CUDA C++ ones, one CUDA graph per bucket of batch sizes."""
