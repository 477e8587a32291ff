"""metal_edge: visual inspection for production lines, from good parts to the reject gate."""

import os

__version__ = "0.1.0"

# ONNX Runtime 1.32 is built to report its use to its maker over the network, and keeps a data base
# for that in the user's home. It looks at this when it is imported, which happens later than this.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
