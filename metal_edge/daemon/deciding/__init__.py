"""Evidence in, verdict out: pure; no I/O and no clock of its own."""
