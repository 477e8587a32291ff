"""Secrets by the name of a systemd credential, or by a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from metal_edge.errors import SettingsError
from metal_edge.settings import load_settings

LINE = 'bundle = "b"\n[camera]\nkind = "folder"\nuri = "images"\n[mqtt]\n'
CAMERA = f'{LINE}username = "edge"\n'


@pytest.mark.parametrize(
    ("written", "there", "found"),
    [
        ("mqtt-password", True, "credentials/mqtt-password"),
        ("mqtt-password", False, "etc/mqtt-password"),
        ("./sub/mqtt-password", True, "etc/sub/mqtt-password"),
        ("/abs/mqtt-password", True, "/abs/mqtt-password"),
        ("..", True, "."),
    ],
)
def test_a_bare_name_is_looked_up_among_the_credentials_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, there: bool, found: str
) -> None:
    credentials, etc = tmp_path / "credentials", tmp_path / "etc"
    (credentials / "sub").mkdir(parents=True)
    etc.mkdir()
    if there:
        for folder in (credentials, credentials / "sub"):
            (folder / "mqtt-password").write_text("secret\n")
    config = etc / "line.toml"
    config.write_text(f'{CAMERA}password_file = "{written}"\nkey_file = "k"\ncert_file = "c"\n')
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    mqtt = load_settings(config).mqtt
    assert mqtt.password_file == tmp_path / found
    assert mqtt.key_file == etc / "k"


def test_without_systemd_names_count_from_the_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    (tmp_path / "line.toml").write_text(f'{CAMERA}password_file = "mqtt-password"\n')
    assert load_settings(tmp_path / "line.toml").mqtt.password_file == tmp_path / "mqtt-password"


def test_the_user_may_be_a_credential_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials, config = tmp_path / "credentials", tmp_path / "line.toml"
    credentials.mkdir()
    (credentials / "mqtt-user").write_text("edge\n")
    config.write_text(f'{LINE}username_file = "mqtt-user"\npassword_file = "p"\n')
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    mqtt = load_settings(config).mqtt
    assert (mqtt.username_file, mqtt.username) == (credentials / "mqtt-user", None)
    for wrong in ('username_file = "mqtt-user"\n', 'username = "a"\nusername_file = "b"\n'):
        config.write_text(LINE + wrong)
        with pytest.raises(SettingsError, match="username"):
            load_settings(config)
