"""What outlives the process: audit events on their way, pictures of parts."""
