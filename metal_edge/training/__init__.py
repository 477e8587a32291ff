"""The training loop: losses, resumable runs, progress."""
