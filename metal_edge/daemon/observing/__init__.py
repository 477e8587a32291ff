"""What people and monitoring see: log, metrics."""
