"""IEC 61131-3 Structured Text, executed: how the PLC's function block is tested without a PLC."""
