"""`preprocess report` as a whole: what the shards, the statistics and the outcomes say of known texts."""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from preprocess import tokens
from preprocess.assemble import assemble
from preprocess.cli import main
from preprocess.conversion import Outcome, Status
from preprocess.readers import parts
from preprocess.readers.text import sentences
from preprocess.split import Salt
from preprocess.staging import StagedSample, StagedUnit

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs on tmp_path/in into tmp_path/NAME and gives the printed result."""

    def call(*words: str, name: str = "out", workers: int = 1, code: int = 0) -> dict[str, Any]:
        (tmp_path / "salt").write_text("a fixed salt for tests only")
        common = ["--in", str(tmp_path / "in"), "--out", str(tmp_path / name), "--salt-file", str(tmp_path / "salt")]
        assert main(["report", *common, "--workers", str(workers), "--json", *words]) == code
        return dict(json.loads(capsys.readouterr().out))

    (tmp_path / "in").mkdir()
    return call


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """By key: text, labels, subject and split of all samples of a set, in the order of the shards."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                stream = tar.extractfile(member)
                assert stream is not None
                data = stream.read().decode()
                entry = found.setdefault(key, {"split": path.name.partition("-")[0]})
                entry |= {"text": data} if kind == "txt" else json.loads(data)
    return found


def sentence(number: int) -> str:
    return f"Sentence {number} tells of a {number}.5 cm nodule in the right upper lobe, unchanged."


def test_the_impression_survives_and_texts_end_with_a_sentence(tmp_path: Path, run: Run) -> None:
    for number in range(8):
        findings = " ".join(sentence(10 * number + place) for place in range(9))
        impression = f"1. Impression of patient {number}. 2. A mass of 2.5 cm"
        (tmp_path / "in" / f"{number}.txt").write_text(f"FINDINGS: {findings}\nIMPRESSION: {impression}\n")
    done = run("--split", "train=1")
    assert done["notes"][0] == "100% of the texts were cut to 112 tokens: --long chunk keeps their ends"
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    found = sorted(entry["text"] for entry in read(tmp_path / "out").values())
    assert len(found) == 8
    for number, text in enumerate(found):
        whole = f"Impression of patient {number}. A mass of 2.5 cm. " + " ".join(
            sentence(10 * number + place) for place in range(9)
        )
        assert len(tokenizer.encode(whole).ids) > 113
        assert whole.startswith(text)
        assert text.endswith("unchanged.")
        assert 80 < len(tokenizer.encode(text).ids) <= 112
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert statistics["truncated_fraction"] == 1.0


def test_chunks_lose_no_sentence_and_keep_the_order(tmp_path: Path, run: Run) -> None:
    long = " ".join(sentence(place) for place in range(40))
    (tmp_path / "in" / "a.txt").write_text(f"IMPRESSION: Short and first.\nFINDINGS: {long}\n")
    (tmp_path / "in" / "b.txt").write_text("IMPRESSION: A short one here.\n")
    done = run("--split", "train=1", "--long", "chunk")
    found = read(tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert max(len(tokenizer.encode(entry["text"]).ids) for entry in found.values()) <= 112
    by_report: dict[str, list[str]] = {}
    for key in found:
        by_report.setdefault(key.rpartition("-")[0], []).append(key)
    keys = max(by_report.values(), key=len)
    assert [key.rpartition("-")[2] for key in keys] == [f"{number:04}" for number in range(len(keys))]
    assert len(keys) > 5
    assert " ".join(found[key]["text"] for key in keys) == f"Short and first. {long}"
    assert [len(keys) for keys in by_report.values() if len(keys) == 1] == [1]
    assert len({found[key]["subject"] for key in keys}) == 1
    assert done["splits"]["train"] == {"samples": len(keys) + 1, "subjects": 2}
    table = pq.read_table(tmp_path / "out" / "outcomes.parquet").to_pylist()
    assert sorted(row["n_samples"] for row in table) == [1, len(keys)]
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert statistics["truncated_fraction"] == 0.0
    assert statistics["chunked_fraction"] == 0.5
    lengths = statistics["figures"]["length (tokens)"]
    assert lengths["n"] == len(keys) + 1
    assert lengths["mean"] == pytest.approx(statistics["mean_tokens"])
    assert "Histogram of length (tokens)" in (tmp_path / "out" / "qc" / "index.html").read_text()
    assert run("--split", "train=1", "--long", "chunk", name="again", workers=2)["fingerprint"] == done["fingerprint"]


_TOKENIZER, _ = tokens.train((sentence(number).encode() for number in range(60)), 600)
_WORDS = st.text(st.sampled_from("abcdeÄ ﷺ1.,[]é\u00bd-"), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(_WORDS, st.integers(0, 99).map(sentence)), min_size=1, max_size=12), st.integers(8, 40))
def test_chunks_are_the_text_whatever_it_holds(pieces: list[str], length: int) -> None:
    text = " ".join(part for piece in pieces for part in sentences(piece))
    shorten = tokens.Shortener(_TOKENIZER, length, chunk=True)
    data = text.encode()
    chunks = [shorten(data, part).decode() for part in range(shorten.count(data))] if text else []
    assert "".join(chunks).replace(" ", "") == text.replace(" ", "")
    tokenizer = Tokenizer.from_str(_TOKENIZER.decode())
    assert all(len(tokenizer.encode(chunk).ids) <= length or len(chunk) == 1 for chunk in chunks)


def test_every_row_is_accounted_for(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in" / "a.csv").write_bytes(
        b"uid,subject,text\n1,S1,The lungs are clear.\n2,S2,\n3,S3,ok\n4,S4,caf\xe9 is bad here\n5,S5,too,many\n"
        b"6,S6,The lungs are clear.\n7,S7,The heart is large.\n"
    )
    (tmp_path / "in" / "b.jsonl").write_bytes(
        b'{"text": "The heart is large."}\n{broken\n{"text": "The spine is bent."}\n'
    )
    done = run("--split", "train=1")
    counts = {
        "rows read": 10, "rows without text": 1, "rows too short": 1, "rows in another encoding": 1,
        "rows malformed": 2, "copies": 2,
    }  # fmt: skip
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert statistics["counts"] == counts
    assert 10 - (sum(counts.values()) - 10) == len(read(tmp_path / "out")) == 3
    page = (tmp_path / "out" / "qc" / "index.html").read_text()
    for name, number in counts.items():
        assert re.search(rf"<td[^>]*>{name}(?:</td>)?<td[^>]*>{number}<", page), name
    assert any("rows read: 10" in note and "rows malformed: 2" in note for note in done["notes"])
    by_reason = {row["message"]: row for row in pq.read_table(tmp_path / "out" / "outcomes.parquet").to_pylist()}
    assert len(by_reason) == 2
    rows = [row for message, row in by_reason.items() if message.startswith("7 rows read")]
    assert {row["reason"] for row in by_reason.values()} == {"malformed_rows"}
    assert "1 rows in another encoding" in rows[0]["message"]


def test_a_table_in_parts_gives_the_same_set_for_any_number_of_workers(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(f'{number},S{number % 45},"{sentence(number % 90)}"\n' for number in range(300))
    (tmp_path / "in" / "a.csv").write_text("uid,subject,text\n" + lines)
    whole = run(name="whole")
    monkeypatch.setattr(parts, "PART_BYTES", 4000)
    one, two = run(name="one"), run(name="two", workers=2)
    assert one["fingerprint"] == two["fingerprint"]
    placed = [
        {(entry["text"], entry["split"]) for entry in read(tmp_path / name).values()} for name in ("whole", "two")
    ]
    assert placed[0] == placed[1]
    assert len(placed[0]) == 90
    (row,) = pq.read_table(tmp_path / "two" / "outcomes.parquet").to_pylist()
    assert (row["status"], row["n_samples"], row["message"]) == ("written", 90, "300 rows read, 210 copies")
    assert whole["splits"] == two["splits"]


def staged(name: str, copies: list[tuple[str, str, str, dict[str, str]]]) -> StagedUnit:
    """A unit whose samples are (key, subject, split, labels)."""
    samples = [
        StagedSample(key, name, subject, True, split or None, json.dumps(labels), "{}", 0, 0, 0, None, None)
        for key, subject, split, labels in copies
    ]
    return StagedUnit(f"unit{name}", "", {name: Outcome(Status.WRITTEN)}, samples=samples)


def test_copies_leave_the_same_survivor_in_any_order(salt: Salt) -> None:
    units = [
        staged("a", [("text-0", "s1", "train", {"label": "ill", "site": "x"})]),
        staged("b", [("text-0", "s2", "test", {"label": "ill"}), ("other-0", "s2", "test", {"label": "well"})]),
        staged("c", [("text-0", "s3", "val", {"grade": "2", "site": "x"})]),
        staged("d", [("other-0", "s1", "train", {"label": "ill"}), ("more-0", "s1", "train", {})]),
    ]
    results = set()
    for order in itertools.permutations(units):
        assembly = assemble(order, {}, {"train": 1.0, "val": 0.0, "test": 0.0}, salt)
        assert [placed.sample.key for placed in assembly.splits["test"]] == ["other-0", "text-0"]
        other, text = (placed.sample for placed in assembly.splits["test"])
        assert json.loads(other.labels) == {}
        assert json.loads(text.labels) == {"label": "ill", "site": "x", "grade": "2"}
        assert [placed.sample.key for placed in assembly.splits["train"]] == ["more-0"]
        assert (assembly.duplicates, assembly.conflicts) == (3, 1)
        reasons = {name: fate.outcome.reason for name, fate in assembly.fates.items()}
        assert reasons == {"a": "duplicate", "b": "", "c": "duplicate", "d": ""}
        results.add((other.labels, text.labels))
    assert len(results) == 1


def test_copies_under_two_labels_in_files_of_any_name(tmp_path: Path, run: Run) -> None:
    content = "IMPRESSION: The lungs are clear."
    for name in ("a", "b", "c"):
        (tmp_path / "in" / f"{name}.txt").write_text(content)
    (tmp_path / "in" / "d.txt").write_text("IMPRESSION: The heart is large.")
    table = "file,label,split,subject\na,ill,train,1\nb,well,test,2\nc,ill,train,3\nd,ill,train,4\n"
    (tmp_path / "labels.csv").write_text(table)
    run("--labels", str(tmp_path / "labels.csv"))
    found = {entry["text"]: entry for entry in read(tmp_path / "out").values()}
    assert found["The lungs are clear."]["split"] == "test"
    assert found["The lungs are clear."]["labels"] == {}
    assert found["The heart is large."]["labels"] == {"label": "ill"}
    rows = pq.read_table(tmp_path / "out" / "outcomes.parquet").to_pylist()
    assert sorted(row["reason"] for row in rows) == ["", "", "conflicting_labels", "conflicting_labels"]


def test_indiana_reports_and_abstracts_are_all_accounted_for(real_data: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "in" / "report").symlink_to(real_data / "report")
    labels = str(real_data / "report" / "iu_xray" / "labels.csv")
    done = run("--labels", labels, "--id-column", "uid", "--vocabulary", "2000")
    assert done["inputs"] == {"read": 7, "written": 2, "skipped": 5, "failed": 0}
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    samples = sum(split["samples"] for split in done["splits"].values())
    left_out = sum(number for name, number in statistics["counts"].items() if name != "rows read")
    assert statistics["counts"]["rows read"] == 3851 + 2888
    assert samples + left_out == 3851 + 2888
    assert "XXXX" not in "".join(entry["text"] for entry in read(tmp_path / "out").values())
