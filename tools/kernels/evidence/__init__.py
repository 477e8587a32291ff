"""What of the kernels can be known without running them: `python -m tools.kernels.evidence`."""
