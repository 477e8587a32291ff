"""Another recipe or other settings, without a gap."""
