"""The list of directories whose Checkpoints are taken. What is checked of a message: test_steps_of_checkpoint.py."""

from __future__ import annotations

import pytest

from ktlog.errors import EncodingError, MessageRejected, Unreachable, UsageError
from ktlog.operator.directories import Directories, check_directories
from ktlog.pkd.keys import ZERO_ROOT
from ktlog.pkd.messages import CheckpointMessage
from tests.admission_world import LOG_URL, PEER, Peers


def test_a_list_that_can_be_used():
    check_directories([])
    check_directories([PEER, "https://keys.example.org:443", "https://example.org/pkd", "https://example.org/pkd/"])


@pytest.mark.parametrize("url", [
    "keys.example.org", "http://keys.example.org", "https://KEYS.example.org", "https://127.0.0.1", "https://[::1]",
    "https://keys.example.org:8443", "https://keys.example.org#x", "https://keys.example.org/?x",
    "https://user@keys.example.org", "https://localhost", "https://keys.example.org/a/../b", "https://keys.exämple.org",
])
def test_a_list_that_no_checkpoint_can_match(url):
    with pytest.raises(UsageError, match="BadDirectory"):
        check_directories([PEER, url])


def test_whose_hosts_are_known():
    directories = Directories(Peers(), LOG_URL, frozenset({PEER, "https://example.org/pkd", LOG_URL, "nonsense"}))
    found = {host for host in ("keys.example.net", "example.org", "keys.example.com", "example.net", "") if
             directories.is_host(host)}
    assert found == {"keys.example.net", "example.org"}  # not its own




def test_why_a_directory_could_not_be_asked_is_not_told():
    """It would tell where its name leads in the log's own network."""
    class Failing:
        def fetch_json(self, url, content_types=(), *, max_bytes=None):
            raise error

    directories = Directories(Failing(), LOG_URL, frozenset({PEER}))
    message = CheckpointMessage(PEER, ZERO_ROOT, b"", LOG_URL, ZERO_ROOT, 1)
    for error in (Unreachable("BadAddress", f"{PEER} is at 10.1.2.3"), EncodingError("BadJson", "10.1.2.3")):
        with pytest.raises(MessageRejected) as caught:
            directories.check_key(message)
        assert caught.value.code == "directory_unreachable"
        assert "10.1.2.3" not in str(caught.value) + caught.value.hint
