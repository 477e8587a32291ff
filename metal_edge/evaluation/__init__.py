"""Metrics on plain arrays, thresholds with a promise, reports with pictures."""
