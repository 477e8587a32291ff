"""The station's voice and ear: connection, topics, payloads, commands, Sparkplug."""
