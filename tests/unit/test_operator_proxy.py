"""What the texts for TLS proxies leave to strangers: nothing that the log did not say."""

from __future__ import annotations

import re

from ktlog.operator.proxy import Proxied, format_proxy


def test_nginx_sends_nobody_to_a_host_that_the_request_named():
    """Whoever asks on port 80 comes to that server whatever its Host header says: there is no other."""
    text = format_proxy("nginx", Proxied(origin="keys.example.org", also=(("w1.example.net", "127.0.0.1:8081"),)))
    assert re.findall(r"return 301 (.*);", text) == ["https://keys.example.org$request_uri"]
