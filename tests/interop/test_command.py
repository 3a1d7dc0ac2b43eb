"""The command and a real Synapse: its configuration is read, its keys are shown, it signs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from invite_client.cli.app import run
from invite_client.signing_keys import write_signing_key
from invite_client.spec.invites import Invite
from invite_client.spec.signatures import SigningKey
from tests.interop.inviter import Inviter, create_room
from tests.interop.synapse import Synapse

pytestmark = pytest.mark.interop


async def call(*arguments: str) -> int:
    return await asyncio.to_thread(run, arguments)


async def test_the_configuration_of_a_synapse_is_all_that_it_takes(
    synapse: Synapse, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--homeserver-config", str(synapse.directory / "homeserver.yaml")]

    assert 0 == await call("keys", "--json", synapse.server_name, *config)

    keys = json.loads(capsys.readouterr().out)
    assert synapse.server_name == keys["server_name"]
    public = next(iter(keys["verify_keys"].values()))["key"]
    assert 0 == await call("keys", synapse.server_name, *config)
    assert public in capsys.readouterr().out


async def test_an_invite_is_sent_signed_and_verified_again_offline(
    synapse: Synapse, inviter: Inviter, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_signing_key(tmp_path / "signing.key", inviter.signing_key)
    # As an operator keeps them: the key beside the configuration. JSON is YAML.
    settings = {
        "server_name": inviter.server_name,
        "signing_key_path": "signing.key",
        "federation_custom_ca_list": [str(synapse.ca_file)],
        "ip_range_blacklist": [],
    }
    (tmp_path / "homeserver.yaml").write_text(json.dumps(settings))
    config = ["--homeserver-config", str(tmp_path / "homeserver.yaml")]
    target = await synapse.register()
    room = create_room(inviter, "10").snapshot()
    invite = Invite.build(room, target.user_id, inviter.signing_key)
    request = tmp_path / "request.json"
    request.write_text(json.dumps(invite.to_request()))

    assert 0 == await call("send", str(request), *config)

    event = json.loads(capsys.readouterr().out)
    assert {inviter.server_name, synapse.server_name} == event["signatures"].keys()
    (tmp_path / "reply.json").write_text(json.dumps({"event": event}))
    assert 0 == await call("keys", "--json", synapse.server_name, *config)
    (tmp_path / "keys.json").write_text(capsys.readouterr().out)
    files = [str(request), str(tmp_path / "reply.json"), "--keys", str(tmp_path / "keys.json")]
    assert 0 == await call("verify", *files)
    assert capsys.readouterr().out.endswith("verified\n")


async def test_a_refusal_is_told_in_the_words_of_synapse(
    synapse: Synapse, inviter: Inviter, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_signing_key(tmp_path / "signing.key", inviter.signing_key)
    inviter.published = ()
    room = create_room(inviter, "10").snapshot()
    invite = Invite.build(room, f"@nobody:{synapse.server_name}", inviter.signing_key)
    request = tmp_path / "request.json"
    request.write_text(json.dumps(invite.to_request()))
    options = [
        *("--server-name", inviter.server_name),
        *("--signing-key", str(tmp_path / "signing.key")),
        *("--ca-file", str(synapse.ca_file)),
        *("--allow-address", "127.0.0.0/8"),
        *("--allow-address", "::1"),
    ]

    assert 1 == await call("send", str(request), "--json", *options)

    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert (401, "M_UNAUTHORIZED") == (error["status"], error["errcode"])
    assert "Check that /_matrix/key/v2/server of our server" in captured.err


async def test_a_synapse_that_is_well_is_found_well_and_gets_no_invite(
    synapse: Synapse, inviter: Inviter, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_signing_key(tmp_path / "signing.key", inviter.signing_key)
    options = [
        *("--server-name", inviter.server_name),
        *("--signing-key", str(tmp_path / "signing.key")),
        *("--ca-file", str(synapse.ca_file)),
        *("--allow-address", "127.0.0.0/8"),
        *("--allow-address", "::1"),
    ]

    code = await call("doctor", synapse.server_name, "--json", *options)

    report = json.loads(capsys.readouterr().out)
    assert (0, True) == (code, report["ok"])
    assert report["software"].startswith("Synapse ")
    assert {"v2": True, "v1": True} == {
        version: endpoint["exists"] for version, endpoint in report["endpoints"].items()
    }
    assert abs(report["clock_ahead"]) < 5
    assert report["signature"]["accepted"]

    # A key that nobody knows: Synapse says so, and that is named, with what is behind it.
    inviter.published = ()
    write_signing_key(tmp_path / "another.key", SigningKey.generate("another"))
    options[3] = str(tmp_path / "another.key")

    code = await call("doctor", synapse.server_name, "--json", *options)

    report = json.loads(capsys.readouterr().out)
    assert (1, False) == (code, report["ok"])
    assert not report["signature"]["accepted"]
    assert "our signature refused" in [finding["problem"] for finding in report["findings"]]
