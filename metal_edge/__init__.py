"""metal_edge: visual inspection for production lines, from good parts to the reject gate."""
