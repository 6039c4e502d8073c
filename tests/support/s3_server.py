"""A real S3 server on loopback (moto's), with one bucket."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.servers import free_port, served

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server(folder: Path, bucket: str) -> Iterator[str]:
    """Gives its address; credentials are ``CREDENTIALS``, or any."""
    port, log = free_port(), folder / "s3-server.log"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with served(command, {**os.environ, **CREDENTIALS}, log, lambda: _has_made(address, bucket)):
        yield address


def list_keys(address: str, bucket: str) -> set[str]:
    """The names of everything in a bucket."""
    return {found["Key"] for found in client(address).list_objects_v2(Bucket=bucket).get("Contents", [])}


def client(address: str) -> "boto3.client":
    """Speaks to a server with ``CREDENTIALS``."""
    names = {"aws_access_key_id": "loopback", "aws_secret_access_key": "loopback", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=address, **names)


def _has_made(address: str, bucket: str) -> bool:
    try:
        client(address).create_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError):
        return False
    return True
