"""The image in its registry: its digest by every kind of answer, and the code that it was made of against that here."""

import json
import subprocess
from pathlib import Path

import pytest

from cluster import image
from cluster.image import REVISION, check_image
from proxykd import own_code
from proxykd.config.stack import ClusterStackSpec, load_stack
from tests.support.site import Site

DIGEST, CONFIG, INDEX = (f"sha256:{digit * 64}" for digit in "123")
BASE = "/v2/team/proxykd"
ATTESTATION = {"digest": f"sha256:{'4' * 64}", "platform": {"os": "unknown"}}


@pytest.mark.parametrize(
    ("status", "state"), [(200, "unchecked"), (404, "missing"), (401, "unchecked"), (503, "unchecked")]
)
def test_an_image_by_its_digest(site: Site, status: int, state: str) -> None:
    site.pages = {f"/v2/team/proxykd/manifests/{DIGEST}": (status, "")}
    (finding,) = check_image(f"localhost:{site.server_port}/team/proxykd:1.0@{DIGEST}")
    assert finding.state == state, finding


def test_a_registry_that_is_out_of_reach_is_unchecked() -> None:
    (finding,) = check_image(f"localhost:9/team/proxykd@{DIGEST}")
    assert finding.state == "unchecked"


@pytest.mark.parametrize("status", [200, 401, 503])
def test_a_placeholder_is_no_digest_whatever_the_registry_says(site: Site, status: int) -> None:
    placeholder = f"sha256:{'0' * 64}"
    site.pages = {f"/v2/team/proxykd/manifests/{placeholder}": (status, "")}
    for host in (f"localhost:{site.server_port}", "localhost:9"):
        (finding,) = check_image(f"{host}/team/proxykd@{placeholder}")
        assert (finding.state, "write its digest" in finding.remedy) == ("missing", True)


@pytest.mark.parametrize(
    "challenge", ["", "Basic realm=x", 'Bearer realm="http://127.0.0.1:9/token"', "Bearer", "Bearer realm"]
)
def test_a_token_is_asked_for_over_https_alone(challenge: str) -> None:
    assert image._anonymous_token(challenge, "team/proxykd") == ""


@pytest.mark.parametrize("name", ["kubernetes", "kubeflow", "local-cluster"])
def test_a_stack_as_it_is_shipped_names_no_image(name: str) -> None:
    stack = load_stack(name)
    assert isinstance(stack, ClusterStackSpec)
    (finding,) = check_image(stack.image)
    assert finding.state == "missing"


def git(folder: Path, *words: str) -> str:
    own = ["git", "-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run([*own, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one step, what it imports, and a page; one commit."""
    for name, text in {
        "steps/__init__.py": "",
        "steps/split.py": "from proxykd import records\n",
        "proxykd/__init__.py": "",
        "proxykd/records.py": "SIDES = 2\n",
        "proxykd/cli.py": "",
        "docs/page.md": "A page.\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "All")
    monkeypatch.setattr(own_code, "CHECKOUT", tmp_path)
    own_code._files_of.cache_clear()
    return tmp_path


def publish(site: Site, revision: str | None, *, digest: str = DIGEST) -> None:
    """An image whose label names a commit, by itself and in a list of images."""
    labels = {} if revision is None else {"Labels": {REVISION: revision}}
    site.pages = {
        f"{BASE}/manifests/{INDEX}": (200, json.dumps({"manifests": [ATTESTATION, {"digest": digest}]})),
        f"{BASE}/manifests/{digest}": (200, json.dumps({"config": {"digest": CONFIG}})),
        f"{BASE}/blobs/{CONFIG}": (200, json.dumps({"config": labels})),
    }


@pytest.mark.parametrize("digest", [DIGEST, INDEX])
@pytest.mark.parametrize(
    ("changed", "state", "words"),
    [
        ("", "ok", "of the steps' code here"),
        ("docs/page.md", "ok", "of the steps' code here"),
        ("proxykd/cli.py", "ok", "of the steps' code here"),  # which no step imports
        ("proxykd/records.py", "missing", "what steps run differs"),
        ("steps/split.py", "missing", "what steps run differs"),
    ],
)
def test_an_image_is_compared_with_the_code_that_steps_run(
    site: Site, checkout: Path, changed: str, state: str, words: str, digest: str
) -> None:
    revision = git(checkout, "rev-parse", "HEAD")
    publish(site, revision)
    if changed:
        with (checkout / changed).open("a") as file:
            file.write("# Changed.\n")
    (finding,) = check_image(f"localhost:{site.server_port}/team/proxykd@{digest}")
    assert (finding.state, words in finding.found) == (state, True), finding
    assert state == "ok" or (revision[:12] in finding.found and "build and push" in finding.remedy)


def test_the_mode_and_the_ends_of_lines_of_a_file_are_no_code(site: Site, checkout: Path) -> None:
    publish(site, git(checkout, "rev-parse", "HEAD"))
    step = checkout / "steps" / "split.py"
    step.write_bytes(step.read_bytes().replace(b"\n", b"\r\n"))
    step.chmod(0o755)
    (finding,) = check_image(f"localhost:{site.server_port}/team/proxykd@{DIGEST}")
    assert finding.state == "ok"


def test_a_file_that_the_commit_has_not_is_a_difference(site: Site, checkout: Path) -> None:
    publish(site, git(checkout, "rev-parse", "HEAD"))
    (checkout / "proxykd" / "prompts.json").write_text("{}")
    (checkout / "proxykd" / "data").mkdir()
    for name in ("__init__.py", "rows.json"):
        (checkout / "proxykd" / "data" / name).write_text("")
    with (checkout / "steps" / "split.py").open("a") as file:
        file.write("from proxykd import data\n")
    (finding,) = check_image(f"localhost:{site.server_port}/team/proxykd@{DIGEST}")
    assert finding.state == "missing"


def test_docker_hub_goes_by_its_registrys_name() -> None:
    names = ("docker.io/me/proxykd:1", "me/proxykd", "index.docker.io/me/proxykd")
    assert {image._Repository(name).address for name in names} == {"https://registry-1.docker.io/v2/me/proxykd"}
    assert image._Repository("python").address == "https://registry-1.docker.io/v2/library/python"


@pytest.mark.parametrize("revision", [None, "unknown", "0" * 40, "HEAD-dirty", "--output=stolen", ""])
def test_an_image_of_which_nothing_is_known_is_left_to_its_steps(
    site: Site, checkout: Path, revision: str | None
) -> None:
    publish(site, revision)
    (finding,) = check_image(f"localhost:{site.server_port}/team/proxykd@{DIGEST}")
    assert (finding.state, "its steps tell" in finding.found) == ("unchecked", True), finding
    assert not (checkout / "stolen").exists()


@pytest.mark.parametrize("page", ["", "[]", '{"config": 1}', '{"manifests": [1]}', '{"manifests": [{}]}', "{"])
def test_a_manifest_that_says_nothing_is_no_fault_of_the_image(site: Site, page: str) -> None:
    site.pages = {f"{BASE}/manifests/{DIGEST}": (200, page)}
    (finding,) = check_image(f"localhost:{site.server_port}/team/proxykd@{DIGEST}")
    assert finding.state == "unchecked"
