"""GStreamer and Aravis come from the operating system, through PyGObject (`gi`).

PyGObject is compiled for the system's own Python. A virtual environment made from that Python
with `--system-site-packages`, or given a `.pth` file that names its dist-packages, sees it.
"""

from __future__ import annotations

import importlib
from typing import Any

from metal_edge.daemon.cameras import CameraError

# Debian 12, Ubuntu 22.04 and later.
PACKAGES = {
    "GLib": "python3-gi",
    "Gst": "python3-gi gir1.2-gstreamer-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good",
    "Aravis": "python3-gi gir1.2-aravis-0.8",
}
_SEEN = "then let this Python see /usr/lib/python3/dist-packages (docs/cameras.md says how)"


def load_namespace(name: str, version: str) -> Any:
    """A library of the system by its GObject name, such as Gst 1.0.

    Raises:
        CameraError: not installed, or out of this Python's sight; says what to install.
    """
    try:
        gi = importlib.import_module("gi")
    except ImportError as error:
        raise CameraError(
            f"PyGObject, which {name} is reached through, cannot be imported ({error})",
            f"apt install {PACKAGES[name]}, {_SEEN}",
        ) from error
    try:
        gi.require_version(name, version)
        return importlib.import_module(f"gi.repository.{name}")
    except (ImportError, ValueError) as error:
        raise CameraError(
            f"{name} {version} is not installed ({error})", f"apt install {PACKAGES[name]}"
        ) from error
