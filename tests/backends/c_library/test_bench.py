"""Programs that measure a library: what they print, here, under emulation and by ssh."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

pytest.importorskip("tvm")

from secateur.checking.remote import measure_remotely, parse_result
from secateur.cli import main
from secateur.ir.errors import SecateurError

from . import models
from .test_emulated import tools

pytestmark = pytest.mark.skipif(
    not models.has("x86_64-linux-gnu-gcc"), reason="needs gcc, whose programs link quickly"
)


def make(model: onnx.ModelProto, folder: Path, *words: str, target: str = "native") -> Path:
    onnx.save(model, folder / "m.onnx")
    command = ["compile", str(folder / "m.onnx"), "-o", str(folder / "o"), "--target", target]
    command += ["--format", "library", "--name", "net", "--bench", *words]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return folder / "o" / "net_bench"


def run(program: Path, *words: str, emulator: tuple[str, ...] = (), code: int = 0) -> Any:
    command = [*emulator, str(program), *words]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == code, done.stderr
    return parse_result(done.stdout) if code == 0 else done.stderr.decode()


def check(said: dict[str, Any], program: Path) -> None:
    """What it says fits together."""
    latency = said["latency_us"]
    order = [latency[k] for k in ("min", "p50", "p90", "p95", "p99", "max")]
    assert order == sorted(order)
    assert order[0] > 0
    assert said["runs"] >= 5
    described = json.loads(program.with_name("net.json").read_text())
    assert said["digest"] == described["digest"]
    assert [c["operation"] for c in said["calls"]] == [c["operation"] for c in described["calls"]]
    assert all(c["microseconds"] >= 0 for c in said["calls"])
    assert said["agrees"]
    assert all(o["agrees"] for o in said["outputs"])


@pytest.mark.slow
def test_a_program_measures_and_checks_its_results(tmp_path: Path) -> None:
    """Own threads and weights that lie apart; names that aren't plain."""
    program = make(models.convolutions(), tmp_path, "--library-threads", "own", "--weights-apart")
    moved = Path(shutil.move(program, tmp_path / "alone"))
    said = run(moved, "0.05", "2")
    check(said, tmp_path / "o" / "x")
    assert said["threads"] == 2
    names = subprocess.run(["readelf", "-lW", moved], capture_output=True, text=True, check=True)
    assert "INTERP" not in names.stdout
    for words in (["0"], ["x"], ["1", "0"], ["1", "1", "1"], ["nan"]):
        assert "usage" in run(moved, *words, code=2)
    program = make(models.lookup(), tmp_path)
    said = run(program, "0.01")
    check(said, program)
    assert said["outputs"][0]["checksum"] == said["outputs"][0]["expected"]


def test_other_results_than_expected_are_told(tmp_path: Path) -> None:
    """The expected output is changed within the program."""
    program = make(models.batch(), tmp_path)
    said = run(program, "0.01")
    assert said["samples"] >= 1
    content = program.read_bytes()
    from secateur.checking.running import open_model
    from secateur.data.random_inputs import random_feeds
    from secateur.ir.reference import Session

    model = open_model(tmp_path / "m.onnx")
    expected = Session(model).run(random_feeds(model, 0)[0])["y"].tobytes()
    assert content.count(expected) == 1
    wrong = (np.frombuffer(expected, np.float32) + np.float32(1)).tobytes()
    program.write_bytes(content.replace(expected, wrong))
    done = subprocess.run([program, "0.01"], capture_output=True, check=False)
    assert done.returncode == 1
    said = parse_result(done.stdout)
    assert [said["agrees"], *(o["agrees"] for o in said["outputs"])] == [False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["aarch64-cortex-a72", "armv7-a", "riscv64"])
def test_programs_for_other_machines(tmp_path: Path, target: str) -> None:
    _, emulator, _ = tools(target)
    program = make(models.integers(), tmp_path, "--library-threads", "own", target=target)
    check(run(program, "0.05", "2", emulator=emulator), program)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A server for ssh on the loopback, and the command that reaches it."""
    if not models.has("ssh", "ssh-keygen") or not Path("/usr/sbin/sshd").exists():
        pytest.skip("needs ssh and sshd")
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(key, check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "authorized",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PermitRootLogin": "prohibit-password",
    }
    (tmp_path / "sshd").write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
    Path("/run/sshd").mkdir(exist_ok=True)
    command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(tmp_path / "sshd")]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as server:
        try:
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            options = f"-i {tmp_path / 'user'} -F none -o StrictHostKeyChecking=no"
            options += f" -o UserKnownHostsFile={tmp_path / 'known'} -o LogLevel=ERROR"
            yield f"ssh://{getpass.getuser()}@127.0.0.1:{port}", f"ssh {options}"
        finally:
            server.terminate()


@pytest.mark.slow
def test_a_device_by_ssh(tmp_path: Path, device: tuple[str, str]) -> None:
    """Nothing stays there. What fails there is told."""
    where, ssh = device
    program = make(models.batch(), tmp_path)
    before = set(Path("/tmp").glob("tmp.*"))
    words = ["benchmark", str(program), "--remote", where, "--ssh", ssh]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    (said,) = json.loads(result.output)
    assert (said["device"], said["program"]) == (where, "net_bench")
    check(said["result"], program)
    assert "yes" in CliRunner().invoke(main, words).output
    bad = tmp_path / "other"
    bad.write_bytes(b"\x7fELF and no more")
    runs = measure_remotely([program, bad], [where, "ssh://127.0.0.1:1"], ssh, seconds=0.05)
    assert [r.result is None for r in runs] == [False, True, True, True]
    result = CliRunner().invoke(main, ["benchmark", str(bad), *words[2:]])
    assert result.exit_code == 1
    assert "other: status " in result.output
    assert set(Path("/tmp").glob("tmp.*")) <= before


@pytest.mark.parametrize(
    "device", ["host", "ssh://-oProxyCommand=x", "ssh://a b", "ssh://a/b", "ssh://", "ssh://-l@h"]
)
def test_names_that_are_no_devices(device: str) -> None:
    with pytest.raises(SecateurError, match="is no device"):
        measure_remotely([], [device])


def test_files_that_are_no_programs(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("#!/bin/sh\n")
    for name in ("a", "missing"):
        with pytest.raises(SecateurError, match=name):
            measure_remotely([tmp_path / name], ["ssh://host"])


@pytest.mark.parametrize(
    "output",
    [b"", b"{}", b"[1]", b'{"schema": 1}', b'{"schema": 1, "latency_us": {"min": 1}}', b"\xff"],
)
def test_output_that_is_no_measurement(output: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_result(output)
