"""Certificates of a TLS connection to the broker: how long they are good for."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

from metal_edge.cli.doctor.finding import Finding, Level
from metal_edge.daemon.mqtt.tls import client_context, tls_remedy
from metal_edge.errors import UnavailableError
from metal_edge.settings import MqttSettings

WARN_DAYS = 30


def check_tls(settings: MqttSettings, now: datetime) -> list[Finding]:
    """One finding per certificate; nothing without TLS. Files that cannot be used raise.

    Raises:
        UnavailableError: a file cannot be read or used.
    """
    context = client_context(settings)
    if context is None:
        return []
    findings = [
        _judge("tls authority", str(settings.ca_file), _date(str(authority["notAfter"])), now)
        for authority in context.get_ca_certs()
    ]
    if settings.cert_file is not None:
        ends = ends_at(settings.cert_file)
        findings.append(_judge("tls own", str(settings.cert_file), ends, now))
    return [*findings, _broker(settings, context, now)]


def ends_at(pem: Path) -> datetime:
    """notAfter of the first certificate in the file.

    Raises:
        UnavailableError: there is none that can be read.
    """
    try:
        text = pem.read_text(encoding="ascii")
        begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        block = begin + text.split(begin, 1)[1].split(end, 1)[0] + end
        return not_after(ssl.PEM_cert_to_DER_cert(block))
    except (OSError, ValueError, IndexError) as error:
        raise UnavailableError(
            f"{pem} holds no certificate that can be read ({error})", "give a PEM file"
        ) from error


def not_after(certificate: bytes) -> datetime:
    """The end of a DER certificate's validity: RFC 5280, section 4.1.

    Raises:
        ValueError, IndexError: no X.509 certificate.
    """
    fields = _items(_items(certificate)[0][1])  # Certificate, tbsCertificate
    inside = _items(fields[0][1])
    # [0] version is optional; then serial number, signature, issuer, validity
    validity = inside[4 if inside[0][0] == 0xA0 else 3][1]
    kind, value = _items(validity)[1]
    text = value.decode("ascii")
    if kind == 0x17:  # UTCTime: years of two digits, 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _items(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element that stands in `data`, one after the other (X.690)."""
    items, at = [], 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[at : at + count], "big")
            at += count
        if at + length > len(data):
            raise ValueError("a certificate cut short")
        items.append((tag, data[at : at + length]))
        at += length
    return items


def _broker(settings: MqttSettings, context: ssl.SSLContext, now: datetime) -> Finding:
    where = f"{settings.host}:{settings.port}"
    try:
        with (
            socket.create_connection(
                (settings.host, settings.port), settings.connect_timeout_s
            ) as s,
            context.wrap_socket(s, server_hostname=settings.host) as secure,
        ):
            shown = secure.getpeercert()
    except ssl.SSLError as error:
        return Finding(Level.FAIL, "tls broker", f"{where}: {error}", _remedy(error))
    except OSError as error:
        return Finding(Level.NOTE, "tls broker", f"{where} not seen ({error})", "see broker")
    if shown is None:
        return Finding(Level.NOTE, "tls broker", f"{where} showed no certificate")
    return _judge("tls broker", where, _date(str(shown["notAfter"])), now)


def _remedy(error: ssl.SSLError) -> str:
    return tls_remedy(f"ssl {error}") or "check mqtt.ca_file and the broker's certificate"


def _date(text: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)


def _judge(check: str, name: str, ends: datetime, now: datetime) -> Finding:
    left = (ends - now).total_seconds() / 86_400
    found = f"{name}: good until {ends:%Y-%m-%d}, {left:.0f} days"
    if left <= 0:
        return Finding(
            Level.FAIL, check, f"{name}: expired on {ends:%Y-%m-%d}", "renew it, or set the clock"
        )
    if left < WARN_DAYS:
        return Finding(Level.WARN, check, found, "renew it, then restart or reconnect")
    return Finding(Level.OK, check, found)
