"""metal_edge: visual inspection for production lines, from good parts to the reject gate."""

__version__ = "0.1.0"
