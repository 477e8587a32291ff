"""The CUDA kernels without a GPU: builds, runs and static evidence."""
