"""Our TensorRT plugin: where its library lies, which one it is, loaded once per process.

TensorRT looks a plugin up by its name, version and namespace, both when it parses an ONNX file
and when it deserialises a plan: the library must be in its registry before either.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metal_edge.bundle import sha256_of
from metal_edge.errors import UnavailableError

VARIABLE = "METAL_EDGE_PLUGIN"
_NAME = "libmetal_edge_plugin.so"
PLACES = (Path("/usr/local/lib/metal-edge") / _NAME, Path("/usr/lib/metal-edge") / _NAME)
# As kernels/README.md specifies the operator; kernels/plugin/plugin.h says the same.
CREATOR, VERSION, NAMESPACE = "MaskedAttention", "1", ""
_BUILD = (
    f"build and install it (kernels/plugin/README.md), or name the library with {VARIABLE};"
    " --attention native does without"
)


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin library on this machine, and the SHA-256 of its file, hex."""

    path: Path
    sha256: str


_loaded: list[Plugin] = []  # none or one: TensorRT's registry belongs to the process as well


def find_plugin(environ: Mapping[str, str] | None = None) -> Plugin | None:
    """The library that this machine would load: METAL_EDGE_PLUGIN's if it is set, else installed.

    Raises:
        UnavailableError: METAL_EDGE_PLUGIN names what is not there, or a library is unreadable.
    """
    named = (os.environ if environ is None else environ).get(VARIABLE)
    path = Path(named) if named else next((p for p in PLACES if p.is_file()), None)
    if path is None:
        return None
    try:
        return Plugin(path, sha256_of(path))
    except OSError as error:
        raise UnavailableError(
            f"the TensorRT plugin {path} cannot be read ({error.strerror})",
            f"correct or unset {VARIABLE}" if named else "install it again",
        ) from error


def require_plugin() -> Plugin:
    """Like `find_plugin`, for those who cannot do without.

    Raises:
        UnavailableError: there is none; says where it was looked for.
    """
    plugin = find_plugin()
    if plugin is None:
        searched = ", ".join(str(place) for place in PLACES)
        raise UnavailableError(f"there is no TensorRT plugin ({VARIABLE}, {searched})", _BUILD)
    return plugin


def load_plugin(trt: Any) -> Plugin:
    """Puts the plugin's creators into TensorRT's registry; further calls find them there.

    Raises:
        UnavailableError: there is no library, TensorRT cannot load it, it has not the version
            that this package is written for, or another library was loaded before.
    """
    plugin = require_plugin()
    if _loaded:
        if _loaded[0].sha256 != plugin.sha256:
            raise UnavailableError(
                f"{plugin.path} was changed after this process had loaded {_loaded[0].path}",
                "start the process again",
            )
        return plugin
    registry = trt.get_plugin_registry()
    try:
        handle = registry.load_library(str(plugin.path))
    except Exception as error:  # the bindings' own kinds, which differ between versions
        raise _not_loaded(plugin, str(error)) from error
    if handle is None:
        raise _not_loaded(plugin, "TensorRT's log says why")
    if registry.get_creator(CREATOR, VERSION, NAMESPACE) is None:
        registry.deregister_library(handle)
        raise UnavailableError(
            f"{plugin.path} has no {CREATOR} of version {VERSION}",
            "build the plugin from the same release as this package (kernels/plugin/README.md)",
        )
    _loaded.append(plugin)
    return plugin


def _not_loaded(plugin: Plugin, reason: str) -> UnavailableError:
    return UnavailableError(
        f"TensorRT cannot load the plugin {plugin.path} ({reason})",
        "build it on this machine, against its TensorRT and CUDA (kernels/plugin/README.md)",
    )
