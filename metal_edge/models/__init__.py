"""The anomaly models, their masks and their checkpoint format."""
