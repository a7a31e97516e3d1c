"""cluster.yaml passes Ray's own checks; what `ray job submit --working-dir .` ships is small and complete."""

from __future__ import annotations

import copy
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(copy.deepcopy(cluster))  # merges Ray's AWS defaults; needs neither boto3 nor credentials


def pinned(name: str) -> str:
    found = re.findall(rf"^{name}==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == 1, f"{name} has to be pinned once in constraints.txt, found {found}"
    return found[0]


def setup_lists(prepared: dict[str, Any]) -> dict[str, list[str]]:
    """The commands that each node type really runs: a type's own list replaces the common one."""
    lists = {prepared["head_node_type"]: prepared["head_setup_commands"]}
    for name, node_type in prepared["available_node_types"].items():
        if name != prepared["head_node_type"]:
            lists[name] = node_type.get("worker_setup_commands", prepared["worker_setup_commands"])
    return lists


def test_ray_accepts_it(prepared: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared)


def test_ray_refuses_an_unknown_key(prepared: dict[str, Any]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="no_such_key"):
        validate_config({**prepared, "no_such_key": 1})


def test_every_node_has_the_pinned_ray_and_one_python(prepared: dict[str, Any]) -> None:
    for name, commands in setup_lists(prepared).items():
        text = "\n".join(commands)
        assert re.findall(r'ray\.__version__ == "([^"]+)"', text) == [pinned("ray")], name
        assert set(re.findall(r"python(3\.\d+)", text)) == {"3.12"}, name
        assert "version_info[:2] == (3, 12)" in text, name
        for command in commands:
            assert "pip install" not in command or "constraints.txt" in command, command
    assert f"ray[data,train,serve]=={pinned('ray')}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_only_gpu_nodes_get_cuda_and_only_the_head_gets_boto3(prepared: dict[str, Any]) -> None:
    text = {name: "\n".join(commands) for name, commands in setup_lists(prepared).items()}
    assert [name for name, commands in text.items() if "[gpu]" in commands] == ["gpu"]
    assert [name for name, commands in text.items() if "boto3" in commands] == ["head"]
    assert pinned("boto3")


def test_workers_add_up(prepared: dict[str, Any]) -> None:
    types = prepared["available_node_types"]
    limits = {name: (t["min_workers"], t["max_workers"]) for name, t in types.items()}
    assert limits == {"head": (0, 0), "cpu": (0, 8), "gpu": (0, 4)}
    assert prepared["max_workers"] == sum(high for _, high in limits.values())
    assert prepared["idle_timeout_minutes"] > 0
    assert len({t["node_config"]["ImageId"] for t in types.values()}) == 1  # one image: one Python everywhere


def test_the_token_guards_every_node(prepared: dict[str, Any]) -> None:
    assert prepared["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any("RAY_AUTH_MODE=token" in command and "ray start" in command for command in prepared[key])
        assert not any("0.0.0.0" in command for command in prepared[key])


def test_every_node_is_closed_and_its_disk_encrypted(prepared: dict[str, Any]) -> None:
    """Ray itself would open port 22 to the world where no group is named."""
    for node_type in prepared["available_node_types"].values():
        config = node_type["node_config"]
        assert config["SecurityGroupIds"] == ["sg-EDIT"]
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        assert [disk["Ebs"]["Encrypted"] for disk in config["BlockDeviceMappings"]] == [True]


def test_mounted_files_exist(cluster: dict[str, Any]) -> None:
    of_the_user = [source for source in cluster["file_mounts"].values() if source.startswith("~")]
    assert of_the_user == ["~/.ray/auth_token"]
    missing = [
        source
        for source in cluster["file_mounts"].values()
        if source not in of_the_user and not (ROOT / source).exists()
    ]
    assert not missing, f"cluster.yaml mounts what the repository does not have: {missing}"


def test_the_working_directory_is_small_and_complete(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    assert package.stat().st_size < 2 * 2**20

    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"jobs", "flowers", "pyproject.toml", "constraints.txt"} <= tops
    assert {"jobs/__init__.py", "flowers/__init__.py", "flowers/data/__init__.py"} <= set(names)
    assert not tops & {".git", ".venv", ".ci", "runs", "tests", "benchmarks", "docs", "build", "deploy"}
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.parametrize("use_gitignore", [True, False])
def test_big_folders_stay_behind_even_without_gitignore(tmp_path: Path, use_gitignore: bool) -> None:
    from ray._private.runtime_env.packaging import create_package

    project = tmp_path / "project"
    for name in (".git/a", ".venv/a", "runs/a", "jobs/a.py", "flowers/data/a.py", "flowers/__pycache__/a.pyc"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("a", encoding="utf-8")
    (project / ".rayignore").write_bytes((ROOT / ".rayignore").read_bytes())
    package = tmp_path / "package.zip"
    create_package(str(project), package, include_gitignore=use_gitignore)
    with zipfile.ZipFile(package) as archive:
        assert sorted(archive.namelist()) == [".rayignore", "flowers/data/a.py", "jobs/a.py"]
