"""Where an API lies is told by its address: on the machine that asks, on the Internet behind port 443, or elsewhere."""

import pytest

from proxykd.config.addresses import endpoint, is_loopback, way_to


@pytest.mark.parametrize(
    ("address", "way"),
    [
        ("https://api.openai.com/v1", "internet"),
        ("https://api.openai.com:443/v1", "internet"),
        ("https://8.8.8.8/v1", "internet"),
        ("https://[2606:4700::1111]/v1", "internet"),
        ("https://api.example.com:8443/v1", "elsewhere"),
        ("http://api.example.com/v1", "elsewhere"),
        ("http://vllm:8000/v1", "elsewhere"),
        ("https://vllm.models.svc.cluster.local/v1", "elsewhere"),
        ("https://vllm.models.svc/v1", "elsewhere"),
        ("https://10.1.2.3/v1", "elsewhere"),
        ("https://[::ffff:10.1.2.3]/v1", "elsewhere"),
        ("http://localhost:8000/v1", "loopback"),
        ("https://localhost./v1", "loopback"),
        ("http://teacher.localhost/v1", "loopback"),
        ("https://127.0.0.1/v1", "loopback"),
        ("http://127.200.3.4:8000/v1", "loopback"),
        ("https://[::1]/v1", "loopback"),
        ("https://[::ffff:127.0.0.1]/v1", "loopback"),
        ("http://0.0.0.0:8000/v1", "loopback"),
    ],
)
def test_the_way_is_seen_by_the_address_alone(address: str, way: str) -> None:
    assert way_to(address) == way


@pytest.mark.parametrize("host", ["localhost.example.com", "notlocalhost", "128.0.0.1", ""])
def test_what_only_looks_like_loopback_is_none(host: str) -> None:
    assert not is_loopback(host)


def test_a_port_that_is_not_written_is_the_schemes() -> None:
    assert endpoint("https://api.example.com/v1") == ("api.example.com", 443)
    assert endpoint("http://[::1]/v1") == ("::1", 80)
    assert endpoint("http://vllm:8000") == ("vllm", 8000)
