"""The daemon as its own process, with settings in a TOML file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from support.broker import PATIENCE_S, Broker, Listener, wait_until

STATION = "metal/v1/enterprise/site/area/line/station"


def write_settings(path: Path, broker: Broker, **sections: dict[str, Any] | str | float) -> Path:
    """A line.toml: bundle, folder camera and broker, changed and completed by `sections`."""
    values: dict[str, Any] = {
        "bundle": "bundle",
        "camera": {"kind": "folder", "uri": "images", "timeout_s": 1.0},
        "mqtt": {"host": broker.host, "port": broker.port},
        "decision": {"deadline_ms": 5000},
    }
    for name, value in sections.items():
        if isinstance(value, dict):
            values[name] = {**values.get(name, {}), **value}
        else:
            values[name] = value
    plain = [f"{k} = {_toml(v)}" for k, v in values.items() if not isinstance(v, dict)]
    tables = [
        "\n".join([f"[{name}]", *(f"{k} = {_toml(v)}" for k, v in value.items())])
        for name, value in values.items()
        if isinstance(value, dict)
    ]
    path.write_text("\n".join([*plain, *tables]) + "\n", encoding="utf-8")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    return str(value) if isinstance(value, int | float) else f'"{value}"'


class Daemon:
    """`python -m metal_edge.daemon`, its standard error in a file.

    Args:
        prefix: a program that execs the daemon, such as `ip netns exec NAME`.
        also: settings of more lines in the same process.
        log: name of that file; next to the settings, and named like them, if empty.
    """

    def __init__(
        self,
        config: Path,
        environment: dict[str, str] | None = None,
        *,
        prefix: tuple[str, ...] = (),
        cwd: Path | None = None,
        log: str = "",
        also: Sequence[Path] = (),
    ) -> None:
        self._errors = config.with_name(log) if log else config.with_suffix(".stderr")
        configs = [word for path in (config, *also) for word in ("--config", str(path))]
        command = [*prefix, sys.executable, "-m", "metal_edge.daemon", *configs]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                stderr=errors,
                stdout=errors,
                env={**os.environ, **(environment or {})},
                cwd=cwd,
            )

    @property
    def log(self) -> str:
        return self._errors.read_text(encoding="utf-8")

    def armed(self, listener: Listener) -> dict[str, Any]:
        """Waits for the birth; gives its payload."""

        def born() -> dict[str, Any] | None:
            assert self.process.poll() is None, f"daemon ended early:\n{self.log}"
            found = [h.data for h in listener.all("state") if h.data["status"] == "online"]
            return found[-1] if found else None

        state = wait_until(born, "the daemon's birth", 2 * PATIENCE_S)
        assert isinstance(state, dict)
        return state

    def exit_code(self, timeout_s: float = PATIENCE_S) -> int:
        """Waits for the end."""
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.exit_code()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP while the block lasts."""
        self.process.send_signal(signal.SIGSTOP)
        yield
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)
        sys.stdout.write(self.log)  # pytest shows it when the test fails
