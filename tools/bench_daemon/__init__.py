"""`make bench-daemon` and `make soak`: a real daemon, a real broker, and what is heard of them."""
