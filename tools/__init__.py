"""For developers and integrators; nothing in metal_edge imports from here."""
