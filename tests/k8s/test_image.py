"""The image's recipe, as text: what it is built from, what its last stage has, and what never reaches it.

Each rule is a function over the Dockerfile's instructions, and is shown to catch its fault in a recipe that has it.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import proxykd

CHECKOUT = Path(proxykd.__file__).parents[1]
RECIPE = (CHECKOUT / "k8s" / "image" / "Dockerfile").read_text(encoding="utf-8")
BUILD = CHECKOUT / "k8s" / "image" / "build"
PINNED = re.compile(r"^[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}$")
INSTALLERS = re.compile(r"\b(apt|apt-get|dpkg|apk|pip|pip3|uv|curl|wget|gcc|g\+\+|make|cmake)\b")


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: its word in capitals, and the rest with continued lines joined."""

    word: str
    rest: str


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, without comments."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    logical = lines.replace("\\\n", " ").splitlines()
    found = [line.strip().split(None, 1) for line in logical if line.strip()]
    return [Instruction(word.upper(), rest) for word, rest in found]


def last_stage(text: str) -> list[Instruction]:
    instructions = parse(text)
    begins = max(i for i, instruction in enumerate(instructions) if instruction.word == "FROM")
    return instructions[begins:]


def unpinned_bases(text: str) -> list[str]:
    """Images that a stage is made from and that could be another one tomorrow."""
    instructions = parse(text)
    defaults = dict(i.rest.split("=", 1) for i in instructions if i.word == "ARG" and "=" in i.rest)
    stages: set[str] = {"scratch"}
    found = []
    for instruction in instructions:
        if instruction.word != "FROM":
            continue
        base, *alias = re.split(r"\s+[Aa][Ss]\s+", instruction.rest)
        base = re.sub(r"\$\{(\w+)\}", lambda match: defaults.get(match[1], "?"), base)
        if base not in stages and not PINNED.match(base):
            found.append(base)
        stages |= set(alias)
    return found


def installs_in_the_last_stage(text: str) -> list[str]:
    return [i.rest for i in last_stage(text) if i.word == "RUN" and INSTALLERS.search(i.rest)]


def privileged_users(text: str) -> list[str]:
    """The user of the finished image, where it is root, a name (no pod can check it), or not set at all."""
    users = [i.rest for i in last_stage(text) if i.word == "USER"]
    last = users[-1] if users else "root"
    return [] if re.fullmatch(r"[1-9]\d*:[1-9]\d*", last) else [last]


def layers_after_the_code(text: str) -> list[str]:
    """What makes a layer and comes after the checkout: it would be pulled anew with every commit."""
    making = [i for i in last_stage(text) if i.word in {"COPY", "ADD", "RUN"}]
    code = next((n for n, i in enumerate(making) if "--from=application" in i.rest), 0)
    return [f"{i.word} {i.rest}" for i in making[code + 1 :]]


def arguments_before_the_code(text: str) -> list[str]:
    """Arguments of one commit that stand before a layer and would make that layer anew."""
    stage = last_stage(text)
    code = max(n for n, i in enumerate(stage) if i.word in {"COPY", "RUN"})
    return [i.rest for i in stage[:code] if i.word == "ARG" and re.match("REVISION|CREATED|VERSION", i.rest)]


def copies_from_outside(text: str) -> list[str]:
    """Files of the building machine that reach the last stage past the stage that compiles the checkout."""
    return [i.rest for i in last_stage(text) if i.word in {"COPY", "ADD"} and not i.rest.startswith("--from=")]


def secrets_in_layers(text: str) -> list[str]:
    """Arguments and variables that a layer would keep for everybody who pulls the image."""
    named = re.compile(r"(?i)(^|\s)\w*(token|password|secret|api_?key|index_url|https?_proxy)\w*=")
    return [i.rest for i in parse(text) if i.word in {"ENV", "ARG", "LABEL"} and named.search(i.rest)]


RULES: dict[Callable[[str], list[str]], tuple[str, str]] = {
    unpinned_bases: ("@sha256:", ":"),
    installs_in_the_last_stage: ("install -d -m", "apt-get install gcc && install -d -m"),
    privileged_users: ("USER 10001:10001", "USER root"),
    layers_after_the_code: ("WORKDIR /app", "RUN chmod -R a+rX /app"),
    arguments_before_the_code: ("COPY --from=dependencies /split/torch/", "ARG REVISION\nCOPY --from=dependencies /"),
    copies_from_outside: ("COPY --from=application /split/ /", "COPY --from=application /split/ /\nCOPY . /app"),
    secrets_in_layers: ("HF_HOME=", "HF_TOKEN=x HF_HOME="),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_recipe_keeps_the_rule_and_the_rule_finds_its_fault(rule: Callable[[str], list[str]]) -> None:
    assert rule(RECIPE) == []
    wanted, fault = RULES[rule]
    assert wanted in RECIPE
    assert rule(RECIPE.replace(wanted, fault)) != []


@pytest.mark.parametrize("user", ["USER 0:0", "USER proxykd", "USER 10001", ""])
def test_only_a_number_that_is_not_root_is_a_user(user: str) -> None:
    assert privileged_users(RECIPE.replace("USER 10001:10001", user))


def test_everything_writable_is_the_users() -> None:
    making = next(i.rest for i in last_stage(RECIPE) if i.word == "RUN")
    owned = " ".join(making.split()).split("install -d -m 1777 -o 10001 -g 10001 ")[1].split(" && ")[0].split()
    environment = " ".join(i.rest for i in last_stage(RECIPE) if i.word == "ENV")
    for variable in ("HOME", "PROXYKD_HOME", "HF_HOME"):
        value = re.search(rf"(?:^|\s){variable}=(\S+)", environment)
        assert value
        assert any(value[1] == folder or value[1].startswith(f"{folder}/") for folder in owned)


def test_what_is_installed_is_what_the_repository_pins() -> None:
    assert "--constraint /build/constraints.txt" in RECIPE
    assert "--require-hashes" in RECIPE
    tools = (CHECKOUT / "k8s" / "image" / "tools.txt").read_text(encoding="utf-8")
    pinned = [entry for entry in tools.replace("\\\n", " ").splitlines() if entry.strip()]
    assert all(re.match(r"[\w.-]+==[\w.]+ .*--hash=sha256:[0-9a-f]{64}", entry) for entry in pinned)
    assert {entry.split("==")[0] for entry in pinned} >= {"uv", "cyclonedx-bom", "hatchling"}


@pytest.fixture
def building(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The build script in a git checkout of its own, with an engine that writes down what it is told."""
    folder = tmp_path / "checkout"
    (folder / "k8s" / "image").mkdir(parents=True)
    (folder / "k8s" / "image" / "build").write_bytes(BUILD.read_bytes())
    (folder / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n', encoding="utf-8")
    (folder / ".gitignore").write_text("build/\n", encoding="utf-8")
    engine = tmp_path / "docker"
    engine.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
        'case "$1" in create) echo box;; build) for word; do case "$word" in '
        f'id=registries,src=*) cp "${{word#*src=}}" {tmp_path}/registries;; esac; done;; esac\n',
        encoding="utf-8",
    )
    engine.chmod(0o755)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t"]):
        subprocess.run(["git", *command], cwd=folder, check=True)

    def build(**variables: str) -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "ENGINE": str(engine), **variables}
        command = ["sh", str(folder / "k8s" / "image" / "build")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)

    return build


def test_the_build_labels_the_commit_and_says_where_it_is_not_that_commit(
    building: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path / "checkout", capture_output=True, text=True, check=True
    ).stdout.strip()
    assert building().returncode == 0
    (tmp_path / "checkout" / "pyproject.toml").write_text('version = "1.2.4"\n', encoding="utf-8")
    assert building(TORCH="cuda").returncode == 0
    first, second = [line for line in (tmp_path / "asked").read_text().splitlines() if line.startswith("build ")]
    assert f"REVISION={commit} " in first
    assert "VERSION=1.2.3 " in first
    assert "TORCH=cpu " in first
    assert f"REVISION={commit}-dirty " in second
    assert "TORCH=cuda " in second


def test_registries_reach_the_build_as_a_secret_alone(
    building: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    address = "https://user:it's-a-key@registry/simple"
    done = building(UV_DEFAULT_INDEX=address, PIP_INDEX_URL=address, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "a-key" not in (tmp_path / "asked").read_text() + done.stdout + done.stderr
    read = subprocess.run(
        ["sh", "-c", '. ./registries; printf "%s %s" "$UV_DEFAULT_INDEX" "$PIP_INDEX_URL"'],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert read.stdout == f"{address} {address}"
    assert not list(tmp_path.glob("tmp.*"))


def test_without_an_engine_the_build_says_what_to_install(
    building: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("dirname", "sh"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    done = building(ENGINE="", PATH=str(tmp_path / "bin"))
    assert done.returncode == 2
    assert "podman or docker" in done.stderr


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves a file outside: its last pattern that fits decides, and one may fit a folder."""
    outcome = False
    for line in (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        expression = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.match(rf"{expression}(/|$)", path):
            outcome = not line.startswith("!")
    return outcome


@pytest.mark.parametrize(
    "path",
    [
        ".git/config", ".env", ".venv/bin/python", ".proxykd/journal.sqlite", "key.pem", "configs/.env",
        "configs/a.key", "proxykd/__pycache__/cli.cpython-311.pyc", "k8s/kubeconfig", "tests/conftest.py",
        "build/image/layers.txt", "notes.txt", "configs/own.env", "k8s/overlays/production/tls.pem",
        "k8s/schemas/jobset.yaml",
    ],
)  # fmt: skip
def test_what_could_be_secret_and_what_only_tests_read_stays_outside(path: str) -> None:
    assert ignored(path)


def test_all_that_the_application_runs_is_inside() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    rooms = ("proxykd/", "steps/", "pipelines/", "cluster/", "configs/", "k8s/", "pyproject.toml", "constraints.txt")
    files = [
        name for name in listed.stdout.split("\0") if name.startswith(rooms) and not name.startswith("k8s/schemas/")
    ]
    assert len(files) > 100
    assert [name for name in files if ignored(name)] == []


PUSHED = f"sha256:{'5' * 64}"
# Of an image that lies in another registry, too, under another digest.
ELSEWHERE = f"elsewhere.example/proxykd@sha256:{'6' * 64}"
ENGINES = {
    "podman": f'[ "$1" = push ] && printf {PUSHED} > "$3"',
    "docker": f'[ "$1" = push ] || printf "{ELSEWHERE}\\nregistry.example:5000/team/proxykd@{PUSHED}\\n"',
    "docker without a digest": "true",
}


@pytest.mark.parametrize(
    ("engine", "image", "written"),
    [
        ("podman", "registry.example:5000/team/proxykd:0.1.0", f"registry.example:5000/team/proxykd@{PUSHED}\n"),
        ("podman", "registry.example:5000/team/proxykd", f"registry.example:5000/team/proxykd@{PUSHED}\n"),
        ("docker", "registry.example:5000/team/proxykd:0.1.0", f"registry.example:5000/team/proxykd@{PUSHED}\n"),
        ("docker without a digest", "registry.example:5000/team/proxykd:0.1.0", None),
        ("docker", "registry.example:5000/team/other:0.1.0", None),
        ("podman", "localhost/proxykd:dev", None),
    ],
)
def test_a_push_tells_the_reference_by_digest(tmp_path: Path, engine: str, image: str, written: str | None) -> None:
    script = tmp_path / "k8s" / "image" / "push"
    script.parent.mkdir(parents=True)
    script.write_bytes(BUILD.with_name("push").read_bytes())
    program = tmp_path / engine.split()[0]
    program.write_text(f"#!/bin/sh\n{ENGINES[engine]}\n", encoding="utf-8")
    program.chmod(0o755)
    reference = tmp_path / "build" / "image" / "reference"
    reference.parent.mkdir(parents=True)
    reference.write_text("of another push\n", encoding="utf-8")
    environment = {"PATH": "/usr/bin:/bin", "ENGINE": str(program), "IMAGE": image}
    done = subprocess.run(["sh", str(script)], env=environment, capture_output=True, text=True, timeout=30)
    if written is None:
        assert done.returncode
        assert "expected" in done.stderr
        assert image.startswith("localhost/") or not reference.exists()
    else:
        assert (done.returncode, done.stdout, reference.read_text()) == (0, written, written)
