"""`tpdm serve`: what the command hands over, what it says, what it refuses."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from tpdm.cli import app
from tpdm.serving.http.settings import LOOPBACK, Limits, Settings


def run(*arguments):
    return CliRunner().invoke(app, ["serve", *arguments])


@pytest.fixture
def handed(monkeypatch):
    """Stands in for loading and listening; what both were called with."""
    found = SimpleNamespace(engine=None, replicas=None, run=None, reserved=None)

    def stand_in(module, **functions):
        fake = ModuleType(module)
        vars(fake).update(functions)
        monkeypatch.setitem(sys.modules, module, fake)

    def make_engine(*names, **options):
        found.engine = (*names, options)
        return "engine"

    def start_replicas(plan):
        found.replicas = plan
        return SimpleNamespace(restart="restart")

    @contextmanager
    def reserved(host, port):
        found.reserved = host, port
        yield "sockets"

    stand_in("tpdm.serving.http.sockets", reserved=reserved)
    stand_in("tpdm.serving.engine.engine", make_engine=make_engine)
    stand_in("tpdm.serving.engine.ray_replicas", start_replicas=start_replicas, ReplicaConfig=lambda *values: values)
    stand_in("tpdm.serving.http.server", serve=lambda *values: setattr(found, "run", values))
    monkeypatch.setenv("TPDM_TEST_TOKEN", "s3cret")
    return found


def test_the_help_has_an_example_that_can_be_copied():
    answer = run("--help")
    assert answer.exit_code == 0
    assert "Example:\n    tpdm serve" in answer.output


def test_every_option_reaches_the_server(handed):
    sizes = [
        "--slots",
        "3",
        "--queue-limit",
        "5",
        "--device",
        "cpu",
        "--dtype",
        "bf16",
        "--variant",
        "fp16",
        "--timeout",
        "9",
        "--max-size",
        "64",
    ]
    proxies = ["--forwarded-allow-ips", "10.0.0.0/8", "--guidance-scale", "3", "--true-cfg-scale", "2"]
    answer = run(
        "--tpm", "tinyworld", "--host", "0.0.0.0", "--port", "81", *sizes, "--token-env", "TPDM_TEST_TOKEN", *proxies
    )
    assert answer.exit_code == 0, answer.output
    assert handed.engine == (
        "tinyworld",
        "tinyworld",
        {
            **{"slots": 3, "queue_limit": 5, "device": "cpu", "dtype": "bf16", "variant": "fp16", "log_prompts": False},
            **{"guidance_scale": 3.0, "true_cfg_scale": 2.0},
        },
    )
    engine, card, settings, sockets = handed.run
    assert (engine, card.id, card.learned, sockets) == ("engine", "tinyworld", True, "sockets")
    assert handed.reserved == ("0.0.0.0", 81)
    assert settings == Settings(Limits(side=64, seconds=9), "s3cret", None, False, "10.0.0.0/8")
    assert answer.output.splitlines() == ["Serving tinyworld at http://0.0.0.0:81"]


def test_what_clients_of_other_servers_need(handed):
    assert run("--tpm", "tinyworld").exit_code == 0
    assert (handed.run[2].aliases, handed.run[2].response_format) == ((), "b64_json")
    names = ["--model-alias", "dall-e-2", "--model-alias", "any"]
    assert run("--tpm", "tinyworld", *names, "--response-format", "url").exit_code == 0
    assert (handed.run[2].aliases, handed.run[2].response_format) == (("dall-e-2", "any"), "url")


def test_allowed_host_names(handed):
    run("--tpm", "tinyworld", "--allowed-host", "pictures.example")
    assert handed.run[2].hosts == (*LOOPBACK, "pictures.example")
    run("--tpm", "tinyworld", "--token-env", "TPDM_TEST_TOKEN")
    assert handed.run[2].hosts is None
    run("--tpm", "tinyworld", "--host", "0.0.0.0", "--allowed-host", "a", "--allowed-host", "b")
    assert handed.run[2].hosts == ("a", "b")


def test_a_server_without_a_token_prints_a_warning(handed):
    assert (
        "Anyone who can reach 0.0.0.0:8000 can use this model" in run("--tpm", "tinyworld", "--host", "0.0.0.0").output
    )
    assert "whoever" not in run("--tpm", "tinyworld").output


def test_without_a_tpm_it_prints_where_one_is(handed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run().output.splitlines()[0] == "No --tpm given. The pipeline's own schedule runs."
    (tmp_path / "runs" / "demo" / "train" / "best").mkdir(parents=True)
    assert "use it with --tpm runs/demo/train/best" in run().output
    assert not handed.run[1].learned


@pytest.mark.parametrize(("device", "gpus"), [("auto", None), ("cuda", 1.0), ("cpu", 0.0), ("mps", 0.0)])
def test_gpus_of_replicas_do_not_depend_on_this_machine(handed, monkeypatch, device, gpus):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run("--tpm", "tinyworld", "--device", device, "--replicas", "2").exit_code == 0
    assert handed.replicas[5] == gpus


def test_replicas_get_their_configuration(handed):
    answer = run("--tpm", "tinyworld", "--device", "cpu", "--replicas", "2", "--max-replicas", "4", "--timeout", "9")
    assert answer.exit_code == 0, answer.output
    make, *plan = handed.replicas
    assert plan == [2, 4, 8, 64, 0.0, 9.0]
    assert make() == "engine"  # the same engine, made in the replica
    assert handed.run[4] == "restart"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--token-env", "TPDM_NO_SUCH_TOKEN"], "Environment variable 'TPDM_NO_SUCH_TOKEN' is not set"),
        (["--tpm", "no/such/folder"], "no/such/folder"),
        (["--backbone", "/no/such/folder"], "A pipeline is 'tinyworld'"),
        (["--device", "cuda:1", "--replicas", "2"], "--device is cuda:1 with --replicas"),
        (["--port", "0"], "Invalid value for '--port'"),
        (["--port", "65536"], "Invalid value for '--port'"),
        (["--slots", "0"], "Invalid value for '--slots'"),
        (["--model-alias", " "], "--model-alias is empty"),
        (["--response-format", "file"], "Invalid value for '--response-format'"),
    ],
)
def test_invalid_options_are_refused(handed, options, words):
    answer = run(*options)
    assert answer.exit_code == 2
    assert words in answer.output
    assert handed.run is None


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("tpdm.serving.http.server", "uvicorn", "serve"), ("tpdm.serving.engine.ray_replicas", "ray", "ray")],
)
def test_missing_packages_are_reported_with_the_extra_to_install(handed, monkeypatch, module, package, extra):
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    answer = run("--tpm", "tinyworld", "--replicas", "2")
    assert answer.exit_code == 2
    assert f"pip install 'tpdm[{extra}]'" in answer.output
