"""Post-training quantisation with calibration on distinct frames."""
