"""A simulated production line: renderer, camera, PLC, and the demo that joins them."""
