"""The report of a run: complete, self-contained, escaped, and right in its figures."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from medcoss.continual.run import Run
from medcoss.contracts import Kind, MedcossError, UsageError
from medcoss.evaluate.retention import Retention, evaluate_run
from medcoss.model.architecture import Architecture
from medcoss.report.pictures import contact_sheet, snippet, spread
from medcoss.report.reconstruct import hidden_voxels
from medcoss.report.record import read_metrics, read_stages
from medcoss.report.retention_view import retention_html, retention_table
from medcoss.report.run_report import write_report


class Checker(HTMLParser):
    """Collects tags, and fails on tags that do not close in order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes out of order"


@pytest.fixture(scope="module")
def report(finished_run):
    evaluate_run(finished_run)
    return write_report(finished_run).read_text()


def test_has_every_part(report):
    for anchor in ("retention", "run", "losses", "reconstructions", "buffers", "throughput", "configuration"):
        assert f'<section id="{anchor}">' in report
    for text in ("3 / 3", "3 min 45 s", "random encoder", "kmeans", "6 samples", "25.0 %", "9.9", "vit_tiny"):
        assert text in report, text
    tags = Checker(report).tags
    assert sum(tag == "img" for tag, _ in tags) >= 3 + 2 * 4 + 2 + 1  # losses, reconstructions, sheets, throughput


def test_needs_no_network_and_runs_no_script(report):
    for tag, attributes in Checker(report).tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
    assert not re.search(r"url\(|@import|https?://", report)


def test_labels_are_escaped(report):
    assert "&lt;b&gt;yes" in report and "<b>yes" not in report


def test_same_run_same_bytes(finished_run, report, tmp_path):
    assert write_report(finished_run, tmp_path / "again.html").read_text() == report


def test_run_that_has_only_begun(finished_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.toml").write_text(finished_run.config_path.read_text())
    text = write_report(Run(tmp_path / "run")).read_text()
    Checker(text)
    assert "0 / 3" in text and "Not evaluated yet" in text and '<section id="losses">' not in text


def test_no_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no run"):
        write_report(Run(tmp_path))


def test_stage_records(finished_run):
    stages = read_stages(finished_run)
    assert [stage.state for stage in stages] == ["done"] * 3
    last = stages[2]
    assert [(s.modality, s.is_replay) for s in last.sources] == [("scan", False), ("note", True), ("photo", True)]
    assert last.sources[0].pretext == [10 / step for step in range(10, 60, 10)]
    assert last.samples_per_s == 130 and last.data_wait_fraction == 0.25 and last.last_step == 50
    assert last.samples == 24 and last.buffer is not None and last.buffer.splits["train"].samples == 6


def test_wrong_measurements_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "modality": "x", "loss": {}}\n{"step": 2}\n')
    with pytest.raises(MedcossError, match=r"metrics\.jsonl:2"):
        list(read_metrics(path))
    assert list(read_metrics(tmp_path / "absent")) == []


def _table() -> Retention:
    return Retention(
        stages=["a", "b"],
        modalities=["one", "two"],
        neighbours=20,
        scores={"a": {"one": 0.9}, "b": {"one": 0.75, "two": None}},
        reasons={"a": {}, "b": {"two": "no <labels>"}},
        chance={"one": 0.5, "two": None},
        random_encoder={"one": 0.6, "two": None},
    )


def test_text_table():
    lines = retention_table(_table()).splitlines()
    cells = [line.split() for line in lines]
    assert cells[0] == ["one", "two", "average"]
    assert ["after", "a", "0.900", "0.900"] in cells and ["after", "b", "0.750", "n/a", "0.750"] in cells
    assert ["random", "encoder", "0.600", "n/a"] in cells and ["forgetting", "+0.150"] in cells
    assert lines[-1] == "two: no <labels>"
    assert len({len(line) for line in lines[:-1]}) == 1, "columns line up"


def test_html_table():
    text = retention_html(_table())
    Checker(text)
    assert "0.900" in text and "+0.150" in text and "no &lt;labels&gt;" in text


def test_hidden_voxels_are_the_patches_not_kept():
    architecture = Architecture(
        width=8, depth=1, heads=1, mlp_ratio=1, decoder_width=8, decoder_depth=1, decoder_heads=1, layer_scale=1,
        drop_path=0, patch_2d=2, patch_3d=(2, 2, 2), image_shape=(3, 4, 6), volume_shape=(1, 4, 4, 4),
    )  # fmt: skip
    mask = hidden_voxels(architecture, Kind.IMAGE, torch.tensor([[0, 4]]))
    expected = np.array([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 1]], dtype=bool)
    assert np.array_equal(mask[0, 0].numpy(), expected)
    volume = hidden_voxels(architecture, Kind.VOLUME, torch.tensor([[7]]))[0, 0].numpy()
    assert volume.sum() == 64 - 8 and not volume[2:, 2:, 2:].any()


def test_spread_and_snippets():
    assert spread(100, 3) == [0, 50, 99] and spread(2, 5) == [0, 1] and spread(0, 5) == []
    assert snippet("a  b\nc") == "a b c" and snippet("word " * 100, 12) == "word word …"


def test_contact_sheet_holds_each_picture():
    import io

    pictures = [Image.new("L", (10, 10), shade) for shade in (0, 120, 250)]
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(pictures, 2, 10))).convert("L"))
    assert sheet.shape == (24, 24)
    assert abs(int(sheet[5, 5])) < 10 and abs(int(sheet[5, 19]) - 120) < 10 and abs(int(sheet[19, 5]) - 250) < 10
