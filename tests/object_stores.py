"""Object stores for tests: credentials, and what serves S3 on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
import requests

from ktlog.store.s3bucket import session
from tests.objects_server import BUCKET

SECRET = "a-secret-that-no-message-may-show"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIDFORTESTS", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}


@contextmanager
def credentials(values: dict[str, str] = CREDENTIALS) -> Iterator[None]:
    """The environment in which boto3 finds *values* and nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        session.cache_clear()
        yield
    session.cache_clear()


def make_bucket(endpoint: str, bucket: str = BUCKET) -> None:
    # A session of its own: the default one keeps the credentials that it saw first.
    boto3.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)


@contextmanager
def moto() -> Iterator[str]:
    """The endpoint of a moto server in this process, with the bucket, empty."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        # What a server of this process kept outlives it, and a module's fixtures may be made twice.
        requests.post(f"{endpoint}/moto-api/reset", timeout=30).raise_for_status()
        make_bucket(endpoint)
        yield endpoint
    finally:
        server.stop()
