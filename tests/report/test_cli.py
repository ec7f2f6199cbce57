"""The verbs of `medcoss` on real files: what they print, write and return."""

from __future__ import annotations

import json

import pytest

from medcoss.cli import build_parser, main
from medcoss.continual.embeddings import EmbeddingTable

VERBS = ("doctor", "verify", "show", "stats", "erase", "status", "evaluate", "report", "embed", "import-weights")


@pytest.fixture
def folder(finished_run):
    """Folder of the image set of the run."""
    return finished_run.config.stages[1].path()


def _json(capsys, *arguments) -> object:
    assert main([str(argument) for argument in (*arguments, "--json")]) == 0
    return json.loads(capsys.readouterr().out)


def test_help_names_exactly_the_verbs_that_exist(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert [verb for verb in VERBS if f"    {verb}" in text] == list(VERBS)
    actions = [action for action in build_parser()._actions if action.choices]
    assert tuple(actions[0].choices) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_each_help_has_an_example(capsys, verb):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert f"example: medcoss {verb}" in " ".join(capsys.readouterr().out.split())


def test_verify(capsys, folder, tmp_path):
    assert _json(capsys, "verify", folder) == {str(folder): []}
    shard = folder / "train-000000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:600] + bytes([content[600] ^ 1]) + content[601:])
    try:
        assert main(["verify", str(folder)]) == 1
        out = capsys.readouterr().out
        assert "1 problem(s)" in out and f"{shard.name}: is damaged" in out and "train-000.png" in out
    finally:
        shard.write_bytes(content)
    assert main(["verify", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/manifest.json: missing")


def test_show(capsys, folder):
    shown = _json(capsys, "show", folder, "--records", "2")
    assert shown["name"] == "photo" and shown["splits"]["train"]["samples"] == 24
    assert [record["key"] for record in shown["records"]] == ["train-000", "train-023"]
    assert shown["records"][0]["content"].startswith("PNG 24x20 RGB")
    assert main(["show", str(folder), "--split", "test"]) == 0
    assert "key: test-000" in capsys.readouterr().out
    assert main(["show", str(folder), "--split", "nothing"]) == 2


@pytest.mark.parametrize(("stage", "content"), [(0, "lungs"), (2, "volume 16x16x16 int16")])
def test_show_of_other_kinds(capsys, finished_run, stage, content):
    shown = _json(capsys, "show", finished_run.config.stages[stage].path())
    assert any(content in record["content"] for record in shown["records"])


def test_stats(capsys, folder):
    counted = _json(capsys, "stats", folder)
    train = counted["splits"]["train"]
    assert train["labels"] == {"finding": {"no": 12, "<b>yes": 12}}
    assert train["samples a subject"] == {"min": 1, "median": 1, "max": 1}
    assert main(["stats", str(folder)]) == 0
    assert "finding: no 12, <b>yes 12" in capsys.readouterr().out


def test_status(capsys, finished_run):
    state = _json(capsys, "status", finished_run.directory)
    assert [(s["stage"], s["state"], s["steps"], s["buffer"]) for s in state["stages"]] == [
        ("note", "done", 50, 6), ("photo", "done", 50, 6), ("scan", "done", 50, 6)
    ]  # fmt: skip
    assert state["stages"][1]["loss"] == {"photo": 0.2, "note (buffer)": 0.02}
    assert state["next"] is None and state["in_use"] is False
    with finished_run.lock():
        assert _json(capsys, "status", finished_run.directory)["in_use"] is True


def test_evaluate_and_report(capsys, finished_run, tmp_path):
    table = _json(capsys, "evaluate", finished_run.directory)
    assert table["stages"] == ["note", "photo", "scan"] and table["scores"]["scan"]["photo"] == 1.0
    assert main(["report", str(finished_run.directory), "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(tmp_path / "r.html")
    row = next(line for line in printed if line.startswith("after scan"))
    assert row.split()[2:5] == [f"{table['scores']['scan'][m]:.3f}" for m in ("note", "photo", "scan")]
    with finished_run.lock():
        assert main(["evaluate", str(finished_run.directory)]) == 2
    assert "in use" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_left_alone(capsys, tmp_path):
    for verb in ("status", "evaluate", "report"):
        assert main([verb, str(tmp_path)]) == 2
        assert "no run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_embed(capsys, finished_run, folder, tmp_path):
    weights = finished_run.model_path("photo")
    arguments = ["embed", "--weights", weights, "--in", folder, "--split", "test", "--out", tmp_path / "e.safetensors"]
    assert main([str(argument) for argument in arguments]) == 0
    assert "8 vectors of 192 numbers" in capsys.readouterr().out
    table = EmbeddingTable.open(tmp_path / "e.safetensors")
    assert table.keys == tuple(f"test-{i:03d}" for i in range(8)) and table.vectors.shape == (8, 192)
    assert len(table.model_fingerprint) == 64


def test_doctor(capsys):
    assert main(["doctor", "--json"]) in (0, 1)
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["torch"]["state"] == "ok" and "GiB free" in findings["disk"]["detail"]
    assert all(finding["mend"] for finding in findings.values() if finding["state"] == "missing")


@pytest.mark.parametrize("content", [b"not a checkpoint", None])
def test_import_weights_refuses_other_files(capsys, tmp_path, content):
    path = tmp_path / "x.pth"
    if content is not None:
        path.write_bytes(content)
    assert main(["import-weights", str(path), "--out", str(tmp_path / "w.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "w.safetensors").exists()
