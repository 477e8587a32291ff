"""What only a machine with an NVIDIA GPU can show: `make device-check`."""
