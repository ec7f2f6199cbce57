"""Killed at any point and repeated, a conversion gives the bytes of one that was never killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medcoss.shards import verify

Tree = Callable[[Path], dict[str, bytes]]

_DRIVER = """
import os, signal, sys
from pathlib import Path
import preprocess.assemble, preprocess.publish, preprocess.run
from preprocess import cli

place, count = sys.argv[1], int(sys.argv[2])
seen = 0

def die_after(function):
    def counted(*arguments, **named):
        global seen
        seen += 1
        if seen > count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return counted

if __name__ == "__main__":
    if place == "converting":
        # Only conversions count samples, inspections do not.
        advance = preprocess.run.Progress.advance
        counted = die_after(advance)
        preprocess.run.Progress.advance = lambda self, *done, **counts: (counted if counts else advance)(
            self, *done, **counts
        )
    elif place == "writing shards":
        preprocess.publish._sample = die_after(preprocess.publish._sample)
    elif place == "moving in":
        replace = Path.replace
        def moved(path, target):
            inside = path.parent.name == "set"
            return (die_after(replace) if inside else replace)(path, target)
        Path.replace = moved
    elif place == "after the manifest":
        preprocess.run.write_private = die_after(preprocess.run.write_private)
    sys.exit(cli.main(sys.argv[3:]))
"""


_SLOW = """
import sys, time
import preprocess.publish
from preprocess import cli

sample = preprocess.publish._sample

def slowly(*arguments):
    time.sleep(1)
    return sample(*arguments)

if __name__ == "__main__":
    preprocess.publish._sample = slowly
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 short reports, four of them copies, one unreadable."""
    root = tmp_path_factory.mktemp("crash")
    folder = root / "in"
    folder.mkdir()
    words = [
        "lungs",
        "clear",
        "effusion",
        "small",
        "heart",
        "opacity",
        "basal",
        "mild",
        "right",
        "left",
        "upper",
        "edema",
    ]
    for number in range(80):
        draw = random.Random(number % 76)
        text = ". ".join(" ".join(draw.sample(words, 6)).capitalize() for _ in range(4))
        (folder / f"r{number}.txt").write_text(
            f"FINDINGS:\n{text}.\nIMPRESSION: No acute {draw.choice(words)} disease.\n"
        )
    (folder / "bad.txt").write_bytes(b"FINDINGS: \0\0")
    (root / "salt").write_text("a fixed salt for tests only")
    return root


def command(root: Path, out: Path, *more: str) -> list[str]:
    options = ["--split", "train=0.6,val=0.2,test=0.2", "--shard-size", "16", "--workers", "1", "--no-qc", *more]
    return ["report", "--in", str(root / "in"), "--out", str(out), "--salt-file", str(root / "salt"), *options]


def preprocess(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "preprocess.cli", *arguments], capture_output=True, text=True, **options
    )


@pytest.fixture(scope="module")
def unkilled(reports: Path) -> Path:
    out = reports / "unkilled"
    assert preprocess(command(reports, out)).returncode == 3
    return out


@pytest.mark.parametrize(
    ("place", "count"),
    [("converting", 7), ("writing shards", 40), ("moving in", 4), ("after the manifest", 0)],
)
def test_killed_there_and_repeated_gives_the_same_bytes(
    reports: Path, unkilled: Path, tree: Tree, tmp_path: Path, place: str, count: int
) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(_DRIVER)
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, driver, place, str(count), *command(reports, out)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    if place != "after the manifest":
        assert not (out / "manifest.json").exists()
    again = preprocess(command(reports, out))
    assert again.returncode == 3, again.stderr
    assert tree(out) == tree(unkilled)
    assert verify(out) == []
    assert (tmp_path / "out.private" / "inputs.csv").is_file()


def test_killed_from_outside_with_its_workers_gone(reports: Path, unkilled: Path, tree: Tree, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocess.cli", *command(reports, out)], stderr=subprocess.DEVNULL
    )
    staging = out / ".staging"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (staging.is_dir() and len(list(staging.iterdir())) > 10):
        time.sleep(0.005)
    children = [
        int(pid) for pid in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True).stdout.split()
    ]
    process.kill()
    process.wait()
    assert children
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in children)
    assert preprocess(command(reports, out)).returncode == 3
    assert tree(out) == tree(unkilled)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_interrupted_says_so_in_one_line_and_keeps_what_is_staged(reports: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocess.cli", *command(reports, out)], stderr=subprocess.PIPE, text=True
    )
    staging = out / ".staging"
    while not (staging.is_dir() and len(list(staging.iterdir())) > 5):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "Traceback" not in errors
    assert staging.is_dir()


@pytest.mark.parametrize("place", ["looking through 81 files", "samples to shards"])
def test_interrupted_before_and_after_the_conversion_is_one_line_too(reports: Path, tmp_path: Path, place: str) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(_SLOW)
    process = subprocess.Popen(
        [sys.executable, driver, *command(reports, tmp_path / "out")], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while place not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines() == ["error: interrupted: run the same command again to go on"]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_other_settings_are_not_mixed_into_a_begun_set(reports: Path, tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(_DRIVER)
    out = tmp_path / "out"
    subprocess.run([sys.executable, driver, "converting", "3", *command(reports, out)], capture_output=True)
    refused = preprocess(command(reports, out, "--length", "64"))
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "length_tokens = 112, not 64" in refused.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_disk_is_one_line_at_every_stage_and_the_run_goes_on_later(
    reports: Path, unkilled: Path, tree: Tree, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    kibibytes = 200
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    stages = []
    try:
        # A little more room each time: the disk is full while units are staged, while shards are written, and at last.
        while (run := preprocess(command(reports, small / "out"))).returncode == 1:
            errors = [line for line in run.stderr.splitlines() if line.startswith("error:")]
            assert len(errors) == 1
            assert f"{small / 'out'}: No space left" in errors[0]
            assert "Traceback" not in run.stderr
            assert not (small / "out" / "manifest.json").exists()
            made = small / "out" / ".staging" / "set"
            assert not made.exists()
            stages.append("writing" if " samples to shards" in run.stderr else "staging")
            kibibytes += 40
            subprocess.run(["mount", "-o", f"remount,size={kibibytes}k", small], check=True)
        assert run.returncode == 3, run.stderr
        assert stages == sorted(stages)
        assert stages.count("staging") >= 2
        assert stages.count("writing") >= 2
        assert tree(small / "out") == tree(unkilled)
        assert verify(small / "out") == []
    finally:
        subprocess.run(["umount", small], check=True)
