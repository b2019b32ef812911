"""What runs elsewhere, as far as it can be checked here: cluster.yaml, rayjob.yaml, docker-compose.yml, the Dockerfile.

No image is built and no machine is started.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.aws.config import _create_default_inbound_rules
from ray.autoscaler._private.util import prepare_config, validate_config

from sweeps import atomic_lora, reasoning_agents
from sweeps.core.arc_options import task_options
from sweeps.core.cli import common_parser, worker_options

ROOT = Path(__file__).resolve().parents[1]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def cluster() -> dict[str, Any]:
    return prepare_config(read("cluster.yaml"))


def images(tree: Any) -> list[str]:
    """Every image that a configuration names, wherever it does."""
    if isinstance(tree, list):
        return [image for item in tree for image in images(item)]
    if not isinstance(tree, dict):
        return []
    own = [value for name, value in tree.items() if name.endswith("image") and isinstance(value, str)]
    return own + [image for item in tree.values() for image in images(item)]


def command_of(words: list[str]) -> dict[str, Any]:
    """Parse the options that follow ``sweeps/atomic_lora.py`` in a command."""
    parser = common_parser(atomic_lora.SPACE, "")
    task_options(parser)
    script = next(index for index, word in enumerate(words) if word.endswith("sweeps/atomic_lora.py"))
    return vars(parser.parse_args(words[script + 1 :]))


# --------------------------------------------------------------------------------------------------------- cluster.yaml


def test_ray_accepts_the_cluster_and_refuses_a_misspelt_one() -> None:
    validate_config(cluster())
    wrong = read("cluster.yaml")
    wrong["available_node_types"]["gpu"]["min_worker"] = 0
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(wrong))


def test_the_head_is_on_demand_and_workers_are_spot_machines_started_from_zero() -> None:
    types = cluster()["available_node_types"]
    market = {name: kind["node_config"].get("InstanceMarketOptions") for name, kind in types.items()}
    assert market == {"head": None, "gpu": {"MarketType": "spot"}, "cpu": {"MarketType": "spot"}}
    assert all(kind["min_workers"] == 0 and kind["max_workers"] > 0 for name, kind in types.items() if name != "head")
    assert types["gpu"]["resources"]["GPU"] == 1 and "GPU" not in types["cpu"]["resources"]


def test_the_world_reaches_port_22_and_nothing_else() -> None:
    config = cluster()
    assert all("SecurityGroupIds" not in kind["node_config"] for kind in config["available_node_types"].values())
    more = config["provider"].get("security_group", {}).get("IpPermissions", [])
    rules = _create_default_inbound_rules({"sg-of-the-cluster"}, more)
    from_outside = [(rule["FromPort"], rule["ToPort"]) for rule in rules if rule.get("IpRanges")]
    assert from_outside == [(22, 22)]
    (start,) = [line for line in config["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_the_command_in_its_comment_is_one_that_the_sweep_takes() -> None:
    text = (ROOT / "cluster.yaml").read_text().replace("#     python", "#   python").replace(" \\\n#", "")
    (line,) = re.findall(r"ray job submit (.*)", text)
    options = command_of(shlex.split(line))
    assert options["num_gpus"] == 4 and options["results_dir"].startswith("s3://")


# ---------------------------------------------------------------------------------------------------------- rayjob.yaml


def test_kuberay_accepts_the_rayjob_and_refuses_a_misspelt_one() -> None:
    schema = json.loads((ROOT / "tests" / "rayjob.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(read("rayjob.yaml"), schema)
    wrong = read("rayjob.yaml")
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 0
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(wrong, schema)


def test_the_rayjob_runs_a_sweep_that_a_retry_continues() -> None:
    spec = read("rayjob.yaml")["spec"]
    options = command_of(shlex.split(spec["entrypoint"]))
    assert options["results_dir"].startswith("s3://") and options["run_id"] == "atomic-lora"
    assert spec["backoffLimit"] > 0 and spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    (gpu,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert (gpu["replicas"], gpu["minReplicas"]) == (0, 0) and gpu["maxReplicas"] >= options["num_gpus"]
    (container,) = gpu["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


# --------------------------------------------------------------------------------------------------- docker-compose.yml


def test_compose_accepts_the_services_and_refuses_a_misspelt_one() -> None:
    schema = json.loads((ROOT / "tests" / "compose.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(read("docker-compose.yml"), schema)
    wrong = read("docker-compose.yml")
    wrong["services"]["demo"]["healthcheck"]["intervall"] = "1m"
    with pytest.raises(jsonschema.ValidationError, match="intervall"):
        jsonschema.validate(wrong, schema)


def test_services_run_sweeps_whose_results_stay_and_are_watched() -> None:
    for name, service in read("docker-compose.yml")["services"].items():
        parser = common_parser(reasoning_agents.SPACE, "")
        worker_options(parser)
        reasoning_agents.add_options(parser)
        program, script, *words = shlex.split(service["command"])
        options = vars(parser.parse_args(words))
        assert (program, script) == ("python", "sweeps/reasoning_agents.py") and (ROOT / script).is_file()
        assert options["preset"] == options["run_id"] == service["environment"]["RUN_ID"] == name
        # the image's folder of the project, where the command puts its results
        (workdir,) = [words[1] for words in instructions() if words[0] == "WORKDIR"]
        assert service["volumes"] == [f"./{options['results_dir']}:{workdir}/{options['results_dir']}"]
        assert f"{options['results_dir']}/reasoning_agents/$$RUN_ID/progress.log" in service["healthcheck"]["test"][1]
        assert service["build"]["args"]["DEVICE"] == service["image"].rpartition("-")[2]
        assert service["image"] == f"ray-lora-sweeps:{PINS['ray']}-{service['build']['args']['DEVICE']}"


# ----------------------------------------------------------------------------------------------------------- Dockerfile


def instructions() -> list[list[str]]:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def test_every_image_has_the_ray_that_is_pinned() -> None:
    (base,) = [words[1] for words in instructions() if words[0] == "FROM"]
    assert base == f"rayproject/ray:{PINS['ray']}-py311-${{DEVICE}}"
    named = images(read("cluster.yaml")) + images(read("rayjob.yaml"))
    assert len(named) == 5
    assert {image.rpartition(":")[2] for image in named} == {f"{PINS['ray']}-cpu", f"{PINS['ray']}-gpu"}
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == PINS["ray"]
    built = re.findall(r"docker build -t (\S+)", (ROOT / "Dockerfile").read_text())
    assert set(built) == set(named)


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    copied = {word for words in instructions() if words[0] == "COPY" for word in words[1:-1] if word[:2] != "--"}
    assert copied and all((ROOT / name).exists() for name in copied)
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*" and {line[1:] for line in lines if line.startswith("!")} == copied
    # a newcomer beside them is not forgotten
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= copied
