"""`make bench`: the speed, size and start-up promises, measured in one run."""
