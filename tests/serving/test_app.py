"""The application as Ray Serve builds it from serve.yaml."""

from __future__ import annotations

import functools
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from fastapi.testclient import TestClient
from ray.serve.schema import ServeDeploySchema

from flowers.errors import InputError
from serving.app import DEPLOYMENT, build_app
from serving.options import Address, ServeOptions, Tuning
from tests.data.test_images import SAMPLES
from tests.e2e.head import free_port
from tests.serving.server import publish
from tests.serving.test_listener import listening
from tests.serving.test_server import wait_for

CONFIG, STOP = (
    yaml.safe_load((Path(__file__).resolve().parents[2] / "serving" / name).read_text())
    for name in ("serve.yaml", "stop.yaml")
)


def built(args: dict[str, Any]) -> Any:
    """What Ray makes of `args` of an application."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    return build(build_app, args)._bound_deployment


def test_the_config_file_is_one_that_ray_takes() -> None:
    (application,) = ServeDeploySchema(**CONFIG).applications
    assert application.import_path == "serving.app:build_app"
    made = built(application.args)
    assert made.name == DEPLOYMENT == CONFIG["applications"][0]["deployments"][0]["name"]
    assert made.init_args[0]["bundle"] == application.args["bundle"]


def test_to_stop_takes_the_application_away_and_leaves_the_proxies() -> None:
    assert ServeDeploySchema(**STOP).applications == []
    for name in ("host", "port"):  # others would be refused while proxies run
        assert STOP["http_options"][name] == CONFIG["http_options"][name]
    assert STOP["proxy_location"] == CONFIG["proxy_location"]


def test_options_become_those_of_the_deployment() -> None:
    made = built({"bundle": "x", "replicas": 2, "cpus": 3, "max_waiting": 100, "tuning": {"max_batch_size": 8}})
    config = made._deployment_config
    assert (config.num_replicas, config.user_config) == (2, {"max_batch_size": 8, "batch_wait_ms": 0.0})
    assert config.max_ongoing_requests > 100, "the replica itself refuses"
    assert config.health_check_period_s <= 1, "a killed replica is noticed"
    assert made.ray_actor_options["num_cpus"] == 3
    scaled = built({"bundle": "x", "max_replicas": 4})._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas) == (1, 4)


@pytest.mark.parametrize(
    ("given", "gpus", "shown"), [({}, 0, "-1"), ({"gpus": 0.25}, 0.25, None), ({"device": "gpu"}, 1, None)]
)
def test_a_replica_sees_the_gpus_that_it_was_given(given: dict[str, Any], gpus: float, shown: str | None) -> None:
    options = built({"bundle": "x", **given}).ray_actor_options
    assert options["num_gpus"] == gpus
    assert options["runtime_env"]["env_vars"].get("CUDA_VISIBLE_DEVICES") == shown
    with pytest.raises(InputError, match=r"^--gpus: received 1.0, required is none, or 0, beside --device cpu$"):
        built({"bundle": "x", "gpus": 1, "device": "cpu"})


def test_a_wrong_option_is_named() -> None:
    for wrong, text in {
        "max_itms": "--max-itms: there is no such option",
        "max_items": "--max-items: received 0, required is 1 or more",
    }.items():
        with pytest.raises(InputError, match=f"^{text}$"):
            built({"bundle": "x", wrong: 0})
    with pytest.raises(InputError, match=r"^--bundle is missing$"):
        built({})


def test_the_config_file_shows_the_defaults() -> None:
    (application,) = CONFIG["applications"]
    assert application["deployments"][0]["user_config"] == Tuning().model_dump()
    assert {name: CONFIG["http_options"][name] for name in ("host", "port")} == Address().model_dump(
        exclude={"verbose"}
    )
    assert CONFIG["http_options"]["request_timeout_s"] > ServeOptions(bundle="x").timeout_s


def test_tuning_is_taken_while_it_runs_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that raised here would be ended by Ray Serve."""
    from serving import replica
    from serving.metrics import FOLDER

    monkeypatch.setenv(FOLDER, str(tmp_path / "metrics"))
    publish(tmp_path, 1)
    classifier = replica.Classifier({"bundle": str(tmp_path), "watch_s": 0, "tuning": {"max_batch_size": 4}})
    for wrong in ({"max_batch_size": 0}, {"max_batch": 3}, {"max_batch_size": "many"}):
        classifier.reconfigure(wrong)
        assert "user_config is refused" in str(classifier.describe().last_reload_error)
        assert classifier._batcher.max_batch_size == 4
        assert classifier._batcher.batch_wait_s == 0
    classifier.reconfigure({"max_batch_size": 3, "batch_wait_ms": 5})
    assert (classifier.describe().last_reload_error, classifier._batcher.max_batch_size) == (None, 3)
    assert classifier._batcher.batch_wait_s == 0.005


def test_what_the_router_refuses_has_the_shape_of_its_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving import replica
    from serving.http.app import build
    from serving.metrics import FOLDER

    monkeypatch.setenv(FOLDER, str(tmp_path / "metrics"))
    publish(tmp_path, 1)
    client = TestClient(build(replica.Classifier({"bundle": str(tmp_path), "watch_s": 0, "allowed_hosts": "*"})))

    def asked(method: str, path: str) -> tuple[int, Any, str | None]:
        response = client.request(method, path)
        return response.status_code, response.json()["error"], response.headers.get("allow")

    missing = "there is no {!r} here; /docs says what there is"
    assert asked("GET", "/no") == (404, {"code": "not_found", "detail": missing.format("/no")}, None)
    assert asked("GET", "/v2/models/flowers/stats") == (404, missing.format("/v2/models/flowers/stats"), None)
    wrong = {"code": "method_not_allowed", "detail": "GET is not taken here, only POST"}
    assert asked("GET", "/predict") == (405, wrong, "POST")
    assert asked("DELETE", "/v1/models/flowers") == (405, "DELETE is not taken here, only GET", "GET")


def test_photos_of_a_client_that_hung_up_are_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the network computes one photo, forty wait behind it whose client goes."""
    from serving import replica
    from serving.http.app import build
    from serving.metrics import FOLDER

    monkeypatch.setenv(FOLDER, str(tmp_path / "metrics"))
    publish(tmp_path, 1)
    classifier = replica.Classifier({"bundle": str(tmp_path), "watch_s": 0})
    predictor = classifier.versions.current.predictor
    computed, busy, free = list[int](), threading.Event(), threading.Event()
    run = predictor.run

    def slow(pixels: Any) -> Any:
        computed.append(len(pixels))
        busy.set()
        assert free.wait(60)
        return run(pixels)

    monkeypatch.setattr(predictor, "run", slow)
    port = free_port()
    with listening(build(classifier), port), ThreadPoolExecutor(1) as pool:
        ask = functools.partial(
            requests.post,
            f"http://127.0.0.1:{port}/predict",
            SAMPLES["png"],
            headers={"Content-Type": "image/png"},
            timeout=60,
        )
        first = pool.submit(ask)
        assert busy.wait(60)
        form = requests.Request("POST", "http://x/predict", files=[("files", SAMPLES["png"])] * 40).prepare()
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n")
            line.sendall("".join(f"{name}: {value}\r\n" for name, value in form.headers.items()).encode())
            assert isinstance(form.body, bytes)
            line.sendall(b"\r\n" + form.body)
            wait_for(lambda: classifier.admission.waiting == 41)
        wait_for(lambda: classifier.admission.waiting == 1)
        free.set()
        assert first.result().status_code == 200
        assert ask().status_code == 200
    assert computed == [1, 1]
