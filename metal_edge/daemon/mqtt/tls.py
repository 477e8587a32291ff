"""TLS towards the broker: our files in, and what to do when a handshake fails."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from metal_edge.errors import UnavailableError
from metal_edge.settings import MqttSettings

_CERTIFICATE_REFUSED = (
    "the broker refuses the client certificate: check the dates of mqtt.cert_file and who signed it"
)
# Words of OpenSSL, lower case, and what helps; the first that fits. Alerts come from the broker.
_REMEDIES = (
    (("hostname mismatch", "ip address mismatch"), "mqtt.host must be a name in its certificate"),
    (
        ("has expired", "not yet valid"),
        "renew the broker's certificate, or set this machine's clock",
    ),
    (
        ("issuer", "self-signed", "self signed"),
        "mqtt.ca_file must hold the authority that signed the broker's certificate",
    ),
    (("wrong version", "record layer"), "mqtt.port does not speak TLS; usually 8883 does"),
    (
        ("certificate required", "alert handshake failure"),
        "the broker wants a client certificate: set mqtt.cert_file and mqtt.key_file",
    ),
    (("alert",), _CERTIFICATE_REFUSED),
)


def client_context(settings: MqttSettings) -> ssl.SSLContext | None:
    """The context for `settings`, its files read anew; None without TLS.

    Raises:
        UnavailableError: a file cannot be read or used; names the files.
    """
    if settings.ca_file is None:
        return None
    try:
        context = ssl.create_default_context(cafile=str(settings.ca_file))
        if settings.cert_file is not None:
            context.load_cert_chain(
                settings.cert_file, settings.key_file, password=_no_passphrase(settings.key_file)
            )
    except (OSError, ValueError) as error:  # SSLError is an OSError
        files = (settings.ca_file, settings.cert_file, settings.key_file)
        names = ", ".join(str(name) for name in files if name is not None)
        raise UnavailableError(
            f"MQTT broker {settings.host}:{settings.port}: cannot use the TLS files {names}"
            f" ({error})",
            "check mqtt.ca_file, mqtt.cert_file and mqtt.key_file",
        ) from error
    return context


def tls_remedy(text: str) -> str | None:
    """What helps against a failed handshake; None when `text` names no reason that we know."""
    words = text.lower().replace("_", " ")
    if "ssl" not in words:
        return None
    fitting = (remedy for signs, remedy in _REMEDIES if any(sign in words for sign in signs))
    return next(fitting, None)


def silence_remedy(settings: MqttSettings) -> str:
    """What helps against a broker that closes the connection without a word."""
    if settings.ca_file is None:
        return "does mqtt.port speak TLS? then set mqtt.ca_file"
    if settings.cert_file is None:
        return "does the broker want a client certificate? then set mqtt.cert_file, mqtt.key_file"
    return _CERTIFICATE_REFUSED


def _no_passphrase(key_file: Path | None) -> Callable[[], str]:
    """Without it, OpenSSL would ask for the passphrase at the terminal."""

    def refuse() -> str:
        raise ValueError(f"{key_file} has a passphrase, which a service cannot type")

    return refuse
