"""The CUDA back end: quantized members on Triton kernels, one CUDA graph per bucket of batch sizes (backend.py)."""
