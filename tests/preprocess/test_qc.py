"""The QC page: what it says of a set, that it is self-contained, and that it takes any figures and samples."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medcoss.contracts import Field, Geometry, Kind, ModalitySpec
from medcoss.shards import Manifest, Sample
from medcoss.shards.manifest import SplitEntry
from preprocess.assemble import Assembly, FileFate, Placed
from preprocess.conversion import Outcome, Status
from preprocess.qc import write_qc
from preprocess.reasons import REASONS
from preprocess.sheet import draw_histogram, figure, histograms, planes
from preprocess.staging import StagedSample


class Page(HTMLParser):
    """A page's links, images with their alternative texts, tables as lists of rows, and whole text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.tags: set[str] = set()
        self.in_cell = False
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attributes)
        self.links += [str(found[name]) for name in ("href", "src") if name in found]
        if tag == "img":
            self.images.append(found)
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data


SHAPES = {Kind.SEQUENCE: (8,), Kind.IMAGE: (3, 8, 8), Kind.VOLUME: (1, 4, 8, 8)}


def staged(key: str, labels: str = "{}") -> StagedSample:
    return StagedSample(key, "input", "subject", True, None, labels, "{}", 0, 0, 0, None, None)


def assembly(**changes: Any) -> Assembly:
    """Four train samples (one without label), one test sample; two files failed, three skipped."""
    labels = ['{"site": "apex"}', '{"site": "apex"}', '{"site": "<base>"}', "{}"]
    train = [Placed("train", "unit", staged(f"k{n}-0", text)) for n, text in enumerate(labels)]
    test = [Placed("test", "unit", staged("k9-0", '{"site": "<base>"}'))]
    outcomes = [Outcome(Status.WRITTEN)] * 5 + [Outcome(Status.SKIPPED, "mask")] * 3
    outcomes += [Outcome(Status.FAILED, "truncated_pixels", "3 of 4 bytes"), Outcome(Status.FAILED, "unreadable")]
    fates = {str(n): FileFate(str(n), "unit", outcome) for n, outcome in enumerate(outcomes)}
    return Assembly({"train": train, "val": [], "test": test}, fates, **changes)


def manifest(kind: Kind = Kind.IMAGE) -> Manifest:
    entries = {"train": (4, 3), "val": (0, 0), "test": (1, 1)}
    splits = {name: SplitEntry(samples, subjects, ()) for name, (samples, subjects) in entries.items()}
    inputs = {"read": 10, "written": 5, "skipped": 3, "failed": 2}
    settings = {"split": {"train": 0.9, "val": 0.05, "test": 0.05}, "note": "<b>"}
    spec = ModalitySpec("toy", kind, Geometry(SHAPES[kind]), (Field("data", "any", "uint8"),), "any",
                        vocabulary=9 if kind is Kind.SEQUENCE else None)  # fmt: skip
    return Manifest(1, "toy", kind, spec, splits, {}, settings, "0", inputs, "salt", None, {}, "f" * 64)


def grey_sample(key: str = "abcdefghijklmnop-0", labels: dict[str, Any] | None = None) -> Sample:
    buffer = io.BytesIO()
    Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (150, 1))).save(buffer, "JPEG")
    return Sample(key, buffer.getvalue(), "subject", labels or {})


def shown(directory: Path, samples: list[Sample], found: Assembly, inputs: list[str] | None = None) -> Page:
    write_qc(directory, manifest(), samples, found, inputs or [])
    return Page((directory / "index.html").read_text(encoding="utf-8"))


def test_what_a_person_must_know_stands_in_tables(tmp_path: Path) -> None:
    page = shown(tmp_path, [grey_sample()], assembly(counts={"rows read": 12}, duplicates=2, unknown_subjects=1))
    splits, labels, reasons, inside, settings = page.tables
    assert splits == [["split", "samples", "subjects", "shards"], ["train", "4", "3", "0"], ["val", "0", "0", "0"],
                      ["test", "1", "1", "0"]]  # fmt: skip
    assert labels[0] == ["site", "train", "val", "test", "all"]
    assert sorted(labels[1:3]) == [["<base>", "1", "0", "1", "2"], ["apex", "2", "0", "0", "2"]]
    assert labels[3:] == [["no label", "1", "0", "0", "1"]]
    # Failures stand first whatever their number; each reason with its meaning.
    assert reasons[1:] == [
        ["failed", "truncated_pixels", "1", REASONS["truncated_pixels"]],
        ["failed", "unreadable", "1", REASONS["unreadable"]],
        ["skipped", "mask", "3", REASONS["mask"]],
    ]
    assert inside == [["what", "number"], ["rows read", "12"]]
    assert ["note", '"<b>"'] in settings
    assert "Files: 10 read, 5 written, 3 skipped, 2 failed." in page.text
    assert "failed: should have been a sample" in page.text
    assert "Split val is empty: 5 % of the subjects were asked for" in page.text
    assert "2 copies of other samples left out." in page.text
    assert "1 sample without a known patient" in page.text
    assert "Split test is empty" not in page.text


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    values = {"slice spacing (mm)": [1.0, 2.0, 2.5], "native slices": [30.0, 30.0]}
    page = shown(tmp_path, [grey_sample()], assembly(figures=values), ["aaaa.geojson", "aaaa.jpg", "bbbb.jpg"])
    outside = [link for link in page.links if not link.startswith("data:image/")]
    assert sorted(outside) == ["inputs/aaaa.geojson", *["inputs/aaaa.jpg"] * 2, *["inputs/bbbb.jpg"] * 2]
    assert not page.tags & {"script", "link", "iframe", "object"}
    source = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "@import" not in source
    assert "url(" not in source
    assert 'name="viewport"' in source
    assert all(image["alt"] for image in page.images)
    alternatives = [str(image["alt"]) for image in page.images]
    assert alternatives[-1] == "Histogram of slice spacing (mm): 3 values, 1 to 2.5, median 2"
    assert "native slices: always 30 (values: 2)" in page.text


def test_nothing_left_out_and_no_label_is_said_or_left_away(tmp_path: Path) -> None:
    found = assembly()
    found.fates = {name: fate for name, fate in found.fates.items() if fate.outcome.status is Status.WRITTEN}
    found.splits["train"] = found.splits["train"][3:]
    found.splits["test"] = []
    page = shown(tmp_path, [], found)
    assert "None: every file became samples or part of one." in page.text
    assert "Samples by label" not in page.text


def test_a_loss_inside_a_written_file_stands_between_failures_and_skipped(tmp_path: Path) -> None:
    found = assembly(counts={"rows read": 12_345}, figures={"length (tokens)": [3.0, 4.0]}, duplicates=1)
    found.fates["0"].outcome = Outcome(Status.WRITTEN, "malformed_rows")
    page = shown(tmp_path, [], found)
    assert [row[:3] for row in page.tables[2][1:]] == [
        ["failed", "truncated_pixels", "1"], ["failed", "unreadable", "1"], ["written", "malformed_rows", "1"],
        ["skipped", "mask", "3"],
    ]  # fmt: skip
    assert page.tables[3][1] == ["rows read", "12,345"]
    assert "written: gave samples, but not all that it holds" in page.text
    assert "Copies that were left out are counted here." in page.text


def test_many_values_of_a_label_are_summed_up(tmp_path: Path) -> None:
    found = assembly()
    found.splits["train"] = [Placed("train", "unit", staged(f"k{n}-0", f'{{"age": {n}}}')) for n in range(60)]
    rows = shown(tmp_path, [], found).tables[1]
    assert len(rows) == 1 + 20 + 2
    assert rows[-2] == ["40 other values", "40", "0", "0", "40"]


def test_pictures_of_inputs_are_sampled_evenly(tmp_path: Path) -> None:
    names = [f"{n:04}.jpg" for n in range(300)]
    page = shown(tmp_path, [], assembly(), names)
    pictures = [link for link in page.links if link.endswith(".jpg")]
    assert len(set(pictures)) == 30
    assert "inputs/0290.jpg" in pictures
    assert "Inputs as a whole (30 of 300)" in page.text


def image_of(markup: str) -> np.ndarray:
    (code,) = re.findall(r"base64,([^\"]+)", markup)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))


def test_texts_are_shown_as_stored_and_cannot_be_markup() -> None:
    text = "Impression: <b>2.5 cm</b> & [DEID]."
    markup = figure(Sample("abcdefghijklmnop-0", text.encode(), "s", {"site": "<i>"}), Kind.SEQUENCE)
    page = Page(markup)
    assert page.tags == {"figure", "blockquote", "mark", "figcaption"}
    assert page.text == text + "abcdefghij… · site: <i>"


def test_pictures_are_small_and_described() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.tile(np.linspace(0, 255, 900).astype(np.uint8), (600, 1))).save(buffer, "JPEG")
    markup = figure(Sample("abcdefghijklmnop-0", buffer.getvalue(), "s", {"side": "left"}), Kind.IMAGE)
    (picture,) = Page(markup).images
    assert picture["alt"] == "Sample abcdefghij… · side: left"
    assert (picture["width"], picture["height"]) == ("320", "213")
    assert image_of(markup).shape == (213, 320, 3)
    assert image_of(markup)[:, -20:].min() > 200 > 50 > image_of(markup)[:, :20].max()


def corner_volume(depth: int) -> np.ndarray:
    """(depth, 40, 60), bright at the low depths of the low rows and columns only."""
    volume = np.zeros((depth, 40, 60), np.int16)
    volume[:, :20, :30] += 1000
    volume[: depth // 2] *= 2
    return volume


def test_a_cube_s_planes_stand_side_by_side_upright() -> None:
    shown_planes = np.asarray(planes(corner_volume(40), None)).astype(int)
    assert shown_planes.shape == (213 + 6 + 126, 320)
    across, below = shown_planes[:213], shown_planes[219:]
    assert across[:100, :150].mean() > across[:100, 170:].mean() + 100
    assert across[:100, :150].mean() > across[115:, :150].mean() + 100
    # Depth rises: what lies at low depth, and is bright, is at the bottom.
    front, side = below[:, :188], below[:, -126:]
    for plane in (front, side):
        assert plane.shape[0] == 126
    assert front[70:, :80].max() == 0  # the middle row is behind the bright corner
    volume = corner_volume(40)
    volume[:, 20:, :] = volume[:, :20, :]
    front = np.asarray(planes(volume, None)).astype(int)[219:, :188]
    assert front[70:, :80].mean() > front[:55, :80].mean() + 50 > front[:, 110:].mean() + 50


def test_thin_volumes_planes_lie_under_each_other_at_full_width() -> None:
    thin = planes(corner_volume(8), (1.0, 1.0, 1.0))
    assert thin.size == (320, 213 + 6 + 43 + 6 + 43)
    # Voxels of 5 mm make the same array a volume that is not thin.
    assert planes(corner_volume(8), (5.0, 1.0, 1.0)).size == (320, 213 + 6 + 126)


@pytest.mark.parametrize("volume", [np.zeros((1, 4, 4), np.int16), np.full((8, 2, 400), 3.5, np.float16)])
def test_odd_volumes_are_drawn(volume: np.ndarray) -> None:
    markup = figure(Sample("abcdefghijklmnop-0", volume, "s", {}, {"voxel_mm": [0.001, 900.0, 1.0]}), Kind.VOLUME)
    assert max(image_of(markup).shape) <= 2000
    assert "voxel 0.001 × 900 × 1 mm" in Page(markup).text


@pytest.mark.parametrize(
    "values",
    [[3.0, 4.0], [0.7, 0.7 + 1e-16, 0.7 - 1e-16], [-1e300, 1e300], [0.0, 0.0], [1.0, 2.5]],
    ids=["two", "rounding noise", "far apart", "zeros", "halves"],
)
def test_a_histogram_is_drawn_of_any_figures(values: list[float]) -> None:
    assert draw_histogram("slice spacing (mm)", np.asarray(values)).startswith(b"\x89PNG")


def test_figures_without_a_distribution_are_words() -> None:
    page = Page(
        histograms({"none": [], "one": [3.0], "odd": [float("nan"), 1.0, float("inf")], "lost": [float("nan")]})
    )
    assert page.images == []
    assert page.text == (
        "none: no valuesone: always 3 (values: 1)odd: always 1 (values: 1, 2 not finite)lost: no values, 1 not finite"
    )
    (chart,) = Page(histograms({"width (px)": [1.0, 2.0, 9.0, float("nan")]})).images
    assert chart["alt"] == "Histogram of width (px): 3 values, 1 to 9, median 2, 1 not finite"
