import json

import pytest

from ktlog.errors import Unreachable, UsageError
from ktlog.wire.dial import Dial, check_global, load_dial, parse_dial, parse_loopback

HOST, OTHER = "keys.alpha.example", "keys.beta.example"

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "239.1.1.1",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1",
    "2001::1", "2001:10::1", "3fff::1", "100::1", "5f00::1", "64:ff9b:1::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1", "not an address",
]
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address):
    with pytest.raises(Unreachable) as caught:
        check_global(address)
    assert caught.value.name == "BadAddress"


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are_public(address):
    check_global(address)


def test_dial_tables(tmp_path):
    table = {"ca_file": "ca.pem", "hosts": {HOST: "127.0.0.1:4433", OTHER: "[::1]:4434"}}
    path = tmp_path / "dial.json"
    path.write_text(json.dumps(table))
    assert load_dial(path) == Dial(
        {HOST: ("127.0.0.1", 4433), OTHER: ("::1", 4434)}, str(tmp_path.resolve() / "ca.pem")
    )
    assert parse_loopback("127.255.0.9:65535") == ("127.255.0.9", 65535)


@pytest.mark.parametrize(("target", "name"), [
    ("10.0.0.1:443", "UnsafeDial"), ("0.0.0.0:443", "UnsafeDial"), ("[::]:443", "UnsafeDial"), ("[fe80::1]:443", "UnsafeDial"),
    ("128.0.0.1:443", "UnsafeDial"), ("[::ffff:127]:443", "UnsafeDial"),
    ("127.0.0.1", "BadDial"), ("localhost:443", "BadDial"), ("127.1:443", "BadDial"), ("127.0.0.1:65536", "BadDial"),
    ("127.0.0.1:+443", "BadDial"), ("127.0.0.1:0443", "BadDial"), ("127.0.0.1:4_43", "BadDial"), ("::1:443", "BadDial"),
    ("127.0.0.1:\u0664", "BadDial"), ("", "BadDial"),
])
def test_dial_targets_off_loopback_are_refused(tmp_path, target, name):
    with pytest.raises(UsageError) as caught:
        parse_dial(json.dumps({"hosts": {HOST: target}}).encode(), tmp_path)
    assert caught.value.name == name


def test_a_dial_table_in_code_is_checked_too():
    with pytest.raises(UsageError) as caught:
        Dial({HOST: ("10.0.0.1", 443)})
    assert caught.value.name == "UnsafeDial"


@pytest.mark.parametrize("data", [
    b"", b"[]", b'{"hosts":[]}', b'{"hosts":{"a.example":1}}', b'{"ca_file":1}', b'{"host":{}}',
    b'{"hosts":{"a.example":"127.0.0.1:1","a.example":"127.0.0.1:2"}}', b'{"hosts":{"127.0.0.1":"127.0.0.1:1"}}',
])
def test_dial_tables_that_are_none(tmp_path, data):
    with pytest.raises(UsageError) as caught:
        parse_dial(data, tmp_path)
    assert caught.value.name == "BadDial"
