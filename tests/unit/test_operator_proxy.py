"""What the texts for TLS proxies leave to strangers: nothing that the log did not say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ktlog.demo.pki import create_pki
from ktlog.operator.proxy import Proxied, format_proxy
from tests.nginx_server import ask_nginx

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("keys.example.org", "w1.example.net")
ANOTHERS = "server { listen 443 ssl default_server; listen [::]:443 ssl default_server; ssl_reject_handshake on; }\n"


def nginx_text(**values: str) -> str:
    return format_proxy("nginx", Proxied(origin=NAMES[0], also=((NAMES[1], "127.0.0.1:8081"),), **values))


def test_nginx_sends_nobody_to_a_host_that_the_request_named():
    """Whoever asks on port 80 may come to any of its servers, whatever the Host header says."""
    assert re.findall(r"return 301 (.*);", nginx_text()) == [f"https://{name}$request_uri" for name in NAMES]


def test_nginx_listens_by_ipv6_wherever_it_does_by_ipv4():
    for tiles in ("", "/srv/ktlog"):
        found = re.findall(r"^ *listen (?:\[::\]:)?(.*;)$", nginx_text(tiles=tiles), re.MULTILINE)
        assert len(found) == 10 and found[::2] == found[1::2]


@pytest.mark.parametrize("tiles", ["", "/srv/ktlog"])
def test_nginx_takes_it_and_says_which_block_is_one_too_many(tmp_path: Path, tiles: str):
    pki = create_pki(tmp_path, NAMES)
    text = nginx_text(tiles=tiles, certificate=str(pki.certificate_file), key=str(pki.key_file))
    assert ask_nginx(text, tmp_path)[0]
    # Where there is a default server already: nginx's words are those of the text, and what it tells to do helps.
    (told,) = re.findall(r'# .*If nginx says "(.*?)"', text)
    taken, words = ask_nginx(ANOTHERS + text, tmp_path)
    assert not taken and f"a {told} for" in words
    blocks = re.split(r"^(?=server \{)", text, flags=re.MULTILINE)
    rest = "".join(block for block in blocks if "default_server;" not in block)
    assert len(blocks) == 6 and ask_nginx(ANOTHERS + rest, tmp_path)[0]


def test_the_first_certificate_is_there_before_nginx_is_told(tmp_path: Path):
    """As docs/running.md has it: certbot's files are those of the next line, by way of the directory for renewals."""
    page = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    webroot, name = re.search(r"^certbot certonly --webroot -w (\S+) -d (\S+)", page, re.MULTILINE).groups()
    certificate, key = re.search(r"^ktlog proxy-config nginx .* --certificate (\S+) --key (\S+)$", page, re.MULTILINE).groups()
    assert {str(Path(path).parent) for path in (certificate, key)} == {f"/etc/letsencrypt/live/{name}"}
    assert f"root {webroot};" in nginx_text()
    pki = create_pki(tmp_path, NAMES)
    gone = tmp_path / "gone.pem"
    taken, words = ask_nginx(nginx_text(certificate=str(gone), key=str(pki.key_file)), tmp_path)
    assert not taken and "cannot load certificate" in words


def test_nginx_leaves_port_80_to_renewals():
    """A ``return`` outside of any location would be the answer to every request."""
    servers = re.findall(r"^server \{\n    listen 80;\n.*?^\}\n", nginx_text(), re.DOTALL | re.MULTILINE)
    assert len(servers) == 2
    for server in servers:
        assert not re.search(r"^    return", server, re.MULTILINE)
        assert re.search(r"location /\.well-known/acme-challenge/ \{\n        root /var/www/html;\n    \}", server)
