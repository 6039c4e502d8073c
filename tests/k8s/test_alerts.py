"""Alerts and docs/alerts.md: metrics that exist, a section an alert, commands that run, backups that are restored."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml

from proxykd.records import canonical_json, hash_text
from proxykd.teacher.entries import Entry
from proxykd.teacher.journal import Journal
from proxykd.teacher.replies import Reply
from tests.k8s.certificate import write_certificate
from tests.k8s.conftest import K8S
from tests.k8s.metrics import METRICS
from tests.k8s.pages import SPACE, blocks, checkout, page
from tests.k8s.policy import check
from tests.k8s.references import dangling
from tests.k8s.schemas import faults
from tests.support.kubectl import Manifest
from tests.support.postgresql_tls import postgresql_tls, program

PAGE = page("alerts")
SECTIONS = dict(re.findall(r"^## (Proxykd\w+)\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((K8S / "base" / "observability" / "alerts.yaml").read_text())["spec"]["groups"]
    for rule in group["rules"]
]
LABELS = {metric: labels for metrics in METRICS.values() for metric, labels in metrics.items()}


def test_every_alert_has_its_section_and_links_to_it() -> None:
    assert [rule["alert"] for rule in RULES] == list(SECTIONS)
    for rule in RULES:
        assert rule["annotations"]["runbook_url"].endswith(f"/blob/main/docs/alerts.md#{rule['alert'].lower()}")
        means, look, do = (SECTIONS[rule["alert"]].find(f"**{word}**:") for word in ("Means", "Look", "Do"))
        assert 0 <= means < look < do
        assert blocks(SECTIONS[rule["alert"]][look:do]), rule["alert"]


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_every_metric_is_one_that_is_counted_and_has_the_labels_that_are_asked_for(rule: dict[str, Any]) -> None:
    selected = re.findall(r"([a-z][a-z0-9_]*)\{([^}]*)\}", rule["expr"])
    named = set(re.findall(r"\b(?:kube|kubelet|kueue|mlflow)_[a-z0-9_]+", rule["expr"]))
    assert named == {metric for metric, _ in selected} <= LABELS.keys()
    for metric, selector in selected:
        assert set(re.findall(r"(\w+)=", selector)) <= LABELS[metric]
    common = frozenset.intersection(*(LABELS[metric] for metric, _ in selected))
    grouped = {
        label.strip() for each in re.findall(r"(?:by|on) \(([^)]*)\)", rule["expr"]) for label in each.split(",")
    }
    shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert grouped | shown <= common


@pytest.mark.integration
def test_the_commands_that_look_are_taken_by_kubectl(tmp_path: Path) -> None:
    looks = [line for text in SECTIONS.values() for block in blocks(text) for line in block.strip().splitlines()]
    with checkout(tmp_path) as cluster:
        cluster.run("kubectl apply -k k8s/overlays/production")
        for line in looks:
            told = cluster.finished(line)
            # What is not there yet may be missing; no resource, option or field selector may be unknown.
            missing = re.search(r'\(NotFound\)|No resources found|no pods found|"\S+" not found', told.stderr)
            assert told.returncode == 0 or missing, f"{line}\n{told.stderr}"


def test_the_pod_for_maintenance_breaks_no_rule(overlays: dict[str, list[Manifest]]) -> None:
    job = yaml.safe_load((K8S / "maintenance.yaml").read_text(encoding="utf-8"))
    job["metadata"]["namespace"] = SPACE
    assert not faults(job)
    for overlay in ("local", "production"):
        assert check([*overlays[overlay], job]) == dangling([*overlays[overlay], job]) == []


BACKUPS = blocks(PAGE.partition("## Backup and restore")[2])
INSIDE = """#!/bin/sh
# kubectl of which `exec` alone does something: what stands behind -- here.
case " $* " in
*" -f - "*) cat > /dev/null;;
*" exec "*) while [ "$1" != -- ]; do shift; done; shift; exec "$@";;
esac
"""


def run_inside(block: str, folder: Path, **variables: str) -> None:
    """Run a block's programs as if in the pods; ``folder`` is the current one, and holds theirs."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "kubectl").write_text(INSIDE)
    (folder / "bin" / "kubectl").chmod(0o755)
    block = block.replace(" /tmp/", f" {folder}/tmp/").replace("cd /var/lib/proxykd", f"cd {folder}/proxykd")
    programs = [str(folder / "bin"), str(Path(sys.executable).parent)]
    if (found := program("pg_dump")) is not None:
        programs.append(str(found.parent))
    path = os.pathsep.join([*programs, os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PROXYKD_HOME": str(folder / "proxykd"), **variables}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.integration
def test_a_damaged_journal_is_put_aside_and_its_copy_has_all_that_was_paid_for(tmp_path: Path) -> None:
    _dump, _restore, backup, restore = BACKUPS
    for name in ("proxykd", "tmp", "build/image", "k8s"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "build" / "image" / "reference").write_text("registry.example/proxykd@sha256:0")
    (tmp_path / "k8s" / "maintenance.yaml").write_text((K8S / "maintenance.yaml").read_text())
    journal = tmp_path / "proxykd" / "journal.sqlite"
    with Journal(journal) as opened:
        asked = [canonical_json({"request": {"q": number}, "sample_idx": 0}) for number in range(30)]
        opened.commit([Entry(hash_text(one), Reply(text="paid", prompt_tokens=1), True, one) for one in asked])
        paid = {row.key for row in opened.rows()}
    run_inside(backup, tmp_path)
    (tmp_path / "tmp" / "journal.jsonl").unlink()
    journal.write_bytes(b"damaged" * 1000)
    run_inside(restore, tmp_path)
    with Journal(journal) as opened:
        assert {row.key for row in opened.rows()} == paid
        assert not opened.damage()
    assert (tmp_path / "proxykd" / "damaged" / "journal.sqlite").read_bytes().startswith(b"damaged")


@pytest.mark.integration
@pytest.mark.skipif(program("pg_restore") is None, reason="no PostgreSQL on this machine")
def test_the_dump_of_the_database_brings_it_back_as_it_was(tmp_path: Path) -> None:
    dump, restore, _backup, _restore = BACKUPS
    with postgresql_tls(*write_certificate(tmp_path / "certificate")) as uri:
        plain = uri.replace("+psycopg", "")
        with psycopg.connect(plain, autocommit=True) as server:
            server.execute("create database mlflow")
        place = urlsplit(plain)
        variables = {"PGHOST": "127.0.0.1", "PGPORT": str(place.port), "PGPASSWORD": str(place.password)}
        address = plain.replace("/postgres", "/mlflow")
        with psycopg.connect(address, autocommit=True) as database:
            database.execute("create table runs (name text primary key); insert into runs values ('kept')")
        run_inside(dump, tmp_path, **variables)
        with psycopg.connect(address, autocommit=True) as database:
            database.execute("delete from runs; create table later (name text)")
        run_inside(restore, tmp_path, **variables)
        with psycopg.connect(address) as database:
            assert database.execute("select name from runs").fetchall() == [("kept",)]
