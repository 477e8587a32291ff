"""The process beside the line: camera, decision, MQTT."""
