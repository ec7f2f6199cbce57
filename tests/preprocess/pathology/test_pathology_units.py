"""One slide's tiles in several units: the same bytes however they are shared, read or found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from preprocess import slides
from preprocess.cli import main
from preprocess.readers import tiling, wsi


def test_cap_draws_the_same_tiles_wherever_the_slide_lies(kit: Any, tmp_path: Path) -> None:
    drawn = []
    for folder, name in (("one", "a.tif"), ("two", "other.tif")):
        (tmp_path / folder).mkdir()
        kit.write_slide(tmp_path / folder / name, kit.stained(1200, 1600), 0.25, 3)
        drawn.append(kit.convert(tmp_path / folder, kit.options("--size", "64", "--max-tiles", "20")))
    one, two = ([(piece.suffix, piece.content, piece.data) for piece in each.pieces] for each in drawn)
    assert len(one) == 20
    assert one == two
    assert [suffix for suffix, _, _ in one] == sorted({suffix for suffix, _, _ in one})
    other = kit.convert(tmp_path / "one", kit.options("--size", "64", "--max-tiles", "20", "--draw-seed", "1"))
    assert {piece.suffix for piece in other.pieces} != {suffix for suffix, _, _ in one}
    every = kit.convert(tmp_path / "one", kit.options("--size", "64", "--max-tiles", "1000"))
    assert len(every.pieces) == (1200 // 128) * (1600 // 128)


@pytest.mark.parametrize("overlap", [0, 24])
def test_pixels_do_not_depend_on_supertiles(kit: Any, tmp_path: Path, overlap: int) -> None:
    """Lossless and JPEG, resized and as they are: a tile read alone has the bytes it has among its neighbours."""
    tissue = kit.stained(1100, 1400)
    paths = [kit.write_slide(tmp_path / "a.tif", tissue, 0.25), kit.write_svs(tmp_path / "b.svs", tissue, 0.25, 2)]
    for path in paths:
        with wsi.opened(path) as slide:
            plan = tiling.plan(slide, 0.25, tile_px=64, tile_mpp=0.5, overlap_px=overlap)
            tiles = tiling.survey(slide, plan, tiling.Filters()).tiles
            assert len(tiles) == plan.rows * plan.columns > 70
            together = dict(tiling.read_tiles(slide, plan, tiles))
            for tile in tiles[::7]:
                ((_, alone),) = tiling.read_tiles(slide, plan, [tile])
                np.testing.assert_array_equal(alone, together[tile])
                scale = plan.side / plan.tile_px * plan.level.downsample
                y, x = (round(place * plan.step_level0) for place in (tile.row, tile.column))
                size = round(64 * scale)
                source = np.asarray(Image.fromarray(tissue[y : y + size, x : x + size]).resize((64, 64), 3))
                assert np.abs(alone.astype(int) - source).mean() < 6


def test_large_slides_are_dealt_out(kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.write_svs(tmp_path / "a.svs", kit.stained(1536, 1536), 0.5, 3)
    chosen = kit.options("--size", "64", "--max-tiles", "all")
    one = kit.convert(tmp_path, chosen)
    monkeypatch.setattr(tiling, "_SUPERTILE_PX", 300)
    monkeypatch.setattr(slides, "UNIT_TILES", 40)
    units = kit.discover(tmp_path, chosen).units
    assert len(units) >= 576 / 40
    assert [unit.detail["first"] for unit in units] == [True] + [False] * (len(units) - 1)
    assert max(len(json.dumps(unit.detail)) for unit in units) < 1500
    many = kit.convert(tmp_path, chosen)
    assert len(one.pieces) == 576
    assert {piece.suffix: (piece.content, piece.data, piece.geometry) for piece in one.pieces} == {
        piece.suffix: (piece.content, piece.data, piece.geometry) for piece in many.pieces
    }
    assert one.counts == many.counts
    assert [(each.extension, each.data) for each in one.attachments] == [
        (each.extension, each.data) for each in many.attachments
    ]


def test_neighbours_go_to_one_unit(kit: Any, tmp_path: Path) -> None:
    path = kit.write_svs(tmp_path / "a.svs", kit.stained(2048, 2048), 0.5)
    with wsi.opened(path) as slide:
        plan = tiling.plan(slide, 0.5, tile_px=32, tile_mpp=0.5)
        tiles = tiling.survey(slide, plan, tiling.Filters()).tiles
        shares = tiling.share_out(plan, tiles, 256)
    assert sorted(tile for share in shares for tile in share) == list(tiles)
    assert all(len(share) <= 256 or len(tiling.in_blocks(plan, share)) == 1 for share in shares)


def outcomes(out: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(out / "outcomes.parquet").to_pylist()


def command(raw: Path, out: Path, *words: str) -> int:
    return main(["pathology", "--in", str(raw), "--out", str(out), "--salt-file", str(out.parent / "salt"), *words])


def test_many_units_of_one_slide_are_one_file_in_the_accounts(kit: Any, tmp_path: Path) -> None:
    """1,156 tiles in five units and two processes: the broken ones of two units add up; a copy gives nothing new."""
    raw = tmp_path / "raw"
    raw.mkdir()
    path = kit.write_svs(raw / "a.svs", kit.stained(1088, 1088), 0.5, 5)
    kit.spoil(path, 0, [0, 24])  # opposite corners
    (raw / "b.svs").write_bytes(path.read_bytes())
    words = ("--size", "32", "--max-tiles", "all")
    for workers in ("1", "2"):
        assert command(raw, tmp_path / f"set{workers}", *words, "--workers", workers) == 0
    one, two = (tmp_path / name for name in ("set1", "set2"))
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()
    written, copy = sorted(outcomes(two), key=lambda row: row["status"], reverse=True)
    assert (written["status"], written["reason"]) == ("written", "broken_tile")
    lost = 8 * 8 + 2 * 2  # a tile of 256 px, and one of which the slide's edge leaves 64 px
    assert written["n_samples"] == 34 * 34 - lost
    assert f"{34 * 34 - lost} tiles kept" in written["message"]
    assert f"{lost} unreadable tiles" in written["message"]
    assert (copy["status"], copy["reason"], copy["n_samples"]) == ("skipped", "duplicate", 0)
    assert len(written["key_prefix"]) == 26
    pictures = {picture.name for picture in (two / "qc" / "inputs").iterdir()}
    assert pictures == {f"{written['key_prefix']}.jpg", f"{written['key_prefix']}.geojson"}


def test_command_keeps_paths_out_and_gives_the_same_set_for_any_number_of_workers(kit: Any, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "SENTINEL-folder").mkdir(parents=True)
    kit.write_slide(raw / "SENTINEL-slide.tif", kit.stained(700, 700), None)
    for number in range(3):
        Image.fromarray(kit.stained(64, 64, number)).save(raw / "SENTINEL-folder" / f"{number}.png")
    table = tmp_path / "mpp.csv"
    table.write_text("file,mpp\nSENTINEL-slide.tif,0.5\n")
    manifests = []
    for workers in ("1", "2"):
        out = tmp_path / f"set{workers}"
        words = ["--in", str(raw), "--out", str(out), "--salt-file", str(tmp_path / "salt"), "--workers", workers]
        words += ["--tiles", "SENTINEL-folder", "--mpp-csv", str(table), "--size", "64"]
        assert main(["pathology", *words]) == 0
        manifests.append((out / "manifest.json").read_bytes())
        for path in out.rglob("*"):
            assert path.is_dir() or b"SENTINEL" not in path.read_bytes()
    assert manifests[0] == manifests[1]
    found = json.loads(manifests[0])
    assert found["inputs"] == {"failed": 0, "read": 4, "skipped": 0, "written": 4}
    assert sum(split["samples"] for split in found["splits"].values()) == 3 + 100
    words[words.index("SENTINEL-folder")] = "elsewhere"
    assert main(["pathology", *words]) == 2
