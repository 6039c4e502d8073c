"""Lines of shell of the workflows, run for real: what a user typed arrives whole, and as nothing else.

Whole distillations, promotions and rollbacks are in tests/pipelines/test_kubernetes.py.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.program import CHECKOUT, SPECIFICATION
from tests.support.runner import HOSTILE, Checkout
from tests.support.s3_server import s3_server
from tests.workflows.rules import load, shell_lines

pytestmark = pytest.mark.integration
KUBECONFIG = "apiVersion: v1\nkind: Config\n"


def _inputs(**changes: Any) -> dict[str, Any]:
    return {"specification": "tiny.yaml", "stack": "local", "budget_usd": "", "dry_run": True, **changes}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout.create(tmp_path_factory.mktemp("checkout"))


def test_a_dry_distillation_shows_the_plan_and_runs_nothing(checkout: Checkout) -> None:
    lines = list(checkout.run("distill", inputs=_inputs(), secrets={"KUBECONFIG_TEXT": KUBECONFIG}))
    assert [done.line.split()[:2] for done in lines] == [
        ["make", "install"],
        ["make", "kubeconfig"],
        [".venv/bin/proxykd", "plan"],
    ]
    assert not [done for done in lines if done.status]
    assert re.search(r"stack local in ZenML +\| not registered<br>-> proxykd stack apply", checkout.summary)
    listed = checkout.line(".venv/bin/proxykd stack list", {})
    assert re.findall(r"^│ (\w+)", listed.output, re.MULTILINE) == ["default"]
    assert "### tiny: every check passed, nothing spent" in checkout.summary
    assert re.search(r"^\| teacher calls +\| 120", checkout.summary, re.MULTILINE)
    file = checkout.folder / ".proxykd" / "kubeconfig"
    assert file.read_text(encoding="utf-8") == KUBECONFIG + "\n"
    assert file.stat().st_mode & 0o077 == 0
    assert not (checkout.folder / "state" / "journal.sqlite").exists()


def test_the_doctor_writes_to_the_bucket_with_the_workflows_own_variables(checkout: Checkout, tmp_path: Path) -> None:
    with s3_server(tmp_path, "proxykd") as address:
        store = {"kind": "s3", "path": "s3://proxykd/artifacts", "endpoint_url": address, "region": "us-east-1"}
        stack = {"kind": "local", "name": "bucket", "artifact_store": store}
        (checkout.folder / "bucket.yaml").write_text(yaml.safe_dump(stack), encoding="utf-8")
        inputs, keys = _inputs(stack="bucket.yaml"), {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
        for secrets, status in ((keys, 0), ({}, 2)):
            before = len(checkout.summary)
            (looked,) = checkout.run("distill", only=" plan ", inputs=inputs, secrets=secrets)
            assert looked.status == status, looked
            assert ("no credentials here" in looked.output) is (not secrets)
            posted = checkout.summary[before:]
            assert "### tiny: every check passed, nothing spent" in posted
            assert ("| MISSING" in posted) is (not secrets)


def test_a_budget_is_the_plans_cap(checkout: Checkout) -> None:
    price = {"input_usd_per_million": 1.0, "output_usd_per_million": 1.0}
    teacher = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "gpt-x", "price": price}
    (checkout.folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "number {n}"}}\n' for n in range(200)))
    asked = {
        **SPECIFICATION,
        "prompts": {"kind": "jsonl", "path": "prompts.jsonl"},
        "teacher": teacher,
        "evaluation": {"resamples": 100, "speed": None},
    }
    (checkout.folder / "priced.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    before, inputs = len(checkout.summary), _inputs(specification="priced.yaml", budget_usd="1.5")
    (planned,) = checkout.run("distill", only=" plan ", inputs=inputs, secrets={})
    assert planned.status == 0, planned
    assert re.search(r"^\| hard caps +\| teacher\.budget\.usd=1\.5 ", checkout.summary[before:], re.MULTILINE)


@pytest.mark.parametrize("name", ["specification", "stack", "budget_usd"])
def test_what_a_user_types_is_no_shell_and_no_option(name: str, checkout: Checkout) -> None:
    for value in (HOSTILE, "--help", "$(touch pwned)"):
        (done,) = checkout.run("distill", only=" plan ", inputs=_inputs(**{name: value}), secrets={})
        assert done.status == 2, done
        assert not (checkout.folder / "pwned").exists()


def test_a_release_builds_the_wheel_and_the_image(checkout: Checkout) -> None:
    wheel, image = (line for _, line in shell_lines(load((CHECKOUT / ".github/workflows/release.yml").read_text())))
    assert checkout.line(wheel, {}).status == 0
    names = {file.suffix for file in (checkout.folder / "dist").iterdir()}
    assert names >= {".whl", ".gz"}
    # The image takes minutes: `make test-containers` builds it.
    planned = checkout.line(image.replace("make", "make --dry-run"), {})
    assert planned.status == 0
    assert "k8s/image/build" in planned.output
