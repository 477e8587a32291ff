"""The metal-edge command: one thin function per sub-command."""
