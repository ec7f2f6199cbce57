"""Raster files: every mode to the right values, every defect to its reason, nothing but pixels in what is stored."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

from preprocess.conversion import Refusal
from preprocess.readers.raster import encode_jpeg, grey_figures, grey_values, open_raster, rgb_values, shrink
from preprocess.readers.sniff import FileKind, file_kind


def reason(path: Path, **options: int) -> str:
    with pytest.raises(Refusal) as caught:
        open_raster(path, **options)
    return caught.value.outcome.reason


def gradient(height: int = 48, width: int = 64) -> np.ndarray:
    return np.add.outer(np.arange(height) * 2, np.arange(width)).astype(np.uint8)


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    values = gradient().astype(np.uint16) * 257
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        read = grey_values(open_raster(tmp_path / name))
        assert read.dtype == np.uint16
        np.testing.assert_array_equal(read, values)
    with pytest.raises(Refusal, match="unsupported_format"):
        rgb_values(open_raster(tmp_path / "deep.png").image)


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([255, 0, 0, 0, 0, 255, 10, 20, 30])
    image.putdata([0, 1, 2, 0, 1, 1, 2, 2])
    image.save(tmp_path / "p.png")
    pixels = rgb_values(open_raster(tmp_path / "p.png").image)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[0, 1].tolist() == [0, 0, 255]
    assert pixels[0, 2].tolist() == [10, 20, 30]


def test_alpha_lies_on_black_for_radiographs_and_on_white_for_slides(tmp_path: Path) -> None:
    pixels = np.full((2, 2, 4), 200, dtype=np.uint8)
    pixels[0, 0, 3], pixels[0, 1, 3], pixels[1, :, 3] = 0, 255, 128
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = open_raster(tmp_path / "a.png")
    grey, colour = grey_values(read), rgb_values(read.image)
    assert grey[0].tolist() == [0, 200]
    assert colour[0, 0].tolist() == [255, 255, 255]
    assert colour[0, 1].tolist() == [200, 200, 200]
    assert abs(int(grey[1, 0]) - 100) <= 1


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (100, 150, 200)).save(tmp_path / "c.bmp")
    expected = round(0.299 * 100 + 0.587 * 150 + 0.114 * 200)
    assert abs(int(grey_values(open_raster(tmp_path / "c.bmp"))[0, 0]) - expected) <= 1


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_orientation_is_applied(tmp_path: Path, suffix: str, compression: str | None) -> None:
    path = tmp_path / f"turned.{suffix}"
    turned = {1: gradient(), 3: np.rot90(gradient(), 2), 6: np.rot90(gradient(), -1), 8: np.rot90(gradient())}
    for code, expected in turned.items():
        exif = Image.Exif()
        exif[0x0112] = code
        options = {"compression": compression} if suffix == "tif" and compression else {"quality": 100}
        Image.fromarray(gradient()).save(path, exif=exif, **options)
        read = open_raster(path)
        assert (read.height, read.width) == expected.shape
        assert grey_values(read).shape == expected.shape
        assert np.abs(grey_values(read).astype(int) - expected).max() <= (3 if suffix == "jpg" else 0)


def test_one_bit_palette_and_interlaced_pngs(tmp_path: Path) -> None:
    bits = gradient() % 3 == 0
    Image.fromarray(bits).save(tmp_path / "bits.png")
    read = open_raster(tmp_path / "bits.png")
    assert read.image.mode == "1"
    np.testing.assert_array_equal(grey_values(read), bits * np.uint8(255))
    grey = Image.fromarray(gradient() // 4 * 4).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    grey.save(tmp_path / "palette.png", bits=8)
    np.testing.assert_array_equal(grey_values(open_raster(tmp_path / "palette.png")), gradient() // 4 * 4)
    for deep in (False, True):
        values = gradient().astype(np.uint16) * 257 if deep else gradient()
        (tmp_path / "adam7.png").write_bytes(interlaced_png(values))
        read = open_raster(tmp_path / "adam7.png")
        assert read.image.info.get("interlace") == 1
        np.testing.assert_array_equal(grey_values(read), values)


def interlaced_png(values: np.ndarray) -> bytes:
    """An Adam7 PNG of grey values (height, width), uint8 or uint16: Pillow reads these but writes none."""
    rows = b""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    for y, x, down, across in passes:
        for row in values[y::down, x::across]:
            rows += b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes()
    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, 0, 0, 0, 1)
    return png(header, zlib.compress(rows))


def png(header: bytes, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("layout", ["plain", "tiled", "big", "lzw"])
def test_tiffs_of_either_polarity_are_bright_on_dark(tmp_path: Path, dtype: type, layout: str) -> None:
    values = (gradient().astype(np.float64) / 255 * (255 if dtype is np.uint8 else 40_000)).astype(dtype)
    options = {"tiled": {"tile": (16, 16)}, "lzw": {"compression": "lzw"}}.get(layout, {})
    read = {}
    for photometric in ("minisblack", "miniswhite"):
        with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=layout == "big") as file:
            file.write(values, photometric=photometric, **options)
        read[photometric] = grey_values(open_raster(tmp_path / "a.tif"))
    np.testing.assert_array_equal(read["minisblack"], values)
    largest = {np.uint8: 255, np.uint16: 65535, np.float32: 0}[dtype]
    np.testing.assert_array_equal(read["miniswhite"], (largest - values.astype(np.float64)).astype(dtype))


def test_further_pages_are_noticed_without_reading_them(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.roll(gradient(), number)) for number in range(3)]
    for name in ("a.tif", "a.png"):
        pages[0].save(tmp_path / name)
        assert not open_raster(tmp_path / name).more
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        assert open_raster(tmp_path / name).more
    # Reading an empty second directory would fail, reading a chain of a million would take minutes.
    with tifffile.TiffWriter(tmp_path / "chain.tif") as file:
        file.write(gradient())
    content = bytearray((tmp_path / "chain.tif").read_bytes())
    first = int.from_bytes(content[4:8], "little")
    link = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    content[link : link + 4] = len(content).to_bytes(4, "little")
    (tmp_path / "chain.tif").write_bytes(content + bytes(6))
    assert open_raster(tmp_path / "chain.tif").more


def test_a_colour_profile_changes_nothing(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.fromarray(gradient()).convert("RGB").save(tmp_path / "a.png", icc_profile=profile)
    read = open_raster(tmp_path / "a.png")
    assert read.image.info["icc_profile"] == profile
    np.testing.assert_array_equal(grey_values(read), gradient())


def test_grey_figures_are_those_of_numpy() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (50, 70), dtype=np.uint8)
    some = noise[::4, ::4]
    assert grey_figures(noise) == pytest.approx((some.mean(), some.std()))
    assert grey_figures(np.full((4, 4), 200, np.uint8)) == (200.0, 0.0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp"])
def test_truncated_and_empty_files_are_typed(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for length in (len(whole) // 2, 20, 3):
        path.write_bytes(whole[:length])
        assert reason(path) == "unreadable"
    path.write_bytes(b"")
    assert reason(path) == "empty"
    path.write_bytes(b"not an image at all, only named like one")
    assert reason(path) == "unreadable"
    assert reason(tmp_path / "absent.png") == "unreadable"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20), 9)
    (tmp_path / "bomb.png").write_bytes(png(header, data))
    assert reason(tmp_path / "bomb.png") == "too_large"
    Image.fromarray(gradient()).save(tmp_path / "small.png")
    assert reason(tmp_path / "small.png", max_pixels=48 * 64 - 1) == "too_large"
    assert open_raster(tmp_path / "small.png", max_pixels=48 * 64).height == 48


def test_text_chunk_bomb_is_typed(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * (8 << 20), zip=True)
    Image.fromarray(gradient()).save(tmp_path / "text.png", pnginfo=info)
    assert reason(tmp_path / "text.png") == "unreadable"


def test_mutated_files_never_escape_untyped(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    noise = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    outcomes = set()
    for suffix in ("jpg", "png", "tif", "bmp"):
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
        for _ in range(100):
            bytes_ = bytearray(stream.getvalue())
            for place in generator.integers(0, min(len(bytes_), 400), 8):
                bytes_[place] = generator.integers(0, 256)
            path = tmp_path / f"mutated.{suffix}"
            path.write_bytes(bytes_)
            try:
                grey_values(open_raster(path, max_pixels=1_000_000))
                outcomes.add("read")
            except Refusal as refusal:
                outcomes.add(refusal.outcome.reason)
    assert "unreadable" in outcomes
    assert outcomes <= {"read", "unreadable", "too_large", "empty"}


def test_reduced_decoding_stays_above_the_side_and_near_the_full_one(tmp_path: Path) -> None:
    y, x = np.mgrid[:1200, :1600]
    smooth = (127 + 60 * np.sin(x / 90) + 60 * np.cos(y / 70)).astype(np.uint8)
    Image.fromarray(smooth).convert("RGB").save(tmp_path / "large.jpg", quality=95)
    full = open_raster(tmp_path / "large.jpg")
    part = open_raster(tmp_path / "large.jpg", side=300, grey=True)
    assert (part.height, part.width) == (1200, 1600)
    assert part.image.size == (400, 300)
    assert part.image.mode == "L"
    difference = shrink(grey_values(full), 150).astype(int) - shrink(grey_values(part), 150).astype(int)
    assert np.abs(difference).max() <= 3


def test_shrink_keeps_aspect_and_never_enlarges() -> None:
    assert shrink(np.zeros((300, 600), np.uint8), 150).shape == (150, 300)
    assert shrink(np.zeros((600, 300, 3), np.uint8), 150).shape == (300, 150, 3)
    small = gradient()
    assert shrink(small, 48) is small
    assert shrink(small, 500) is small


def test_stored_jpeg_is_exact_about_colour_and_carries_nothing() -> None:
    red = np.zeros((32, 32, 3), dtype=np.uint8)
    red[..., 0] = np.tile([250, 30], 16)  # single-pixel colour stripes survive only without chroma subsampling
    red[..., 2] = np.tile([30, 250], 16)
    data = encode_jpeg(red, 90)
    image = Image.open(io.BytesIO(data))
    assert np.abs(np.asarray(image).astype(int) - red).mean() < 8
    assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert encode_jpeg(red, 90) == data
    assert Image.open(io.BytesIO(encode_jpeg(red[..., 0], 95))).mode == "L"


def test_kinds_by_suffix_and_by_content(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "plain", "PNG")
    (tmp_path / "dicom").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "notes").write_text("notes")
    assert file_kind(tmp_path / "plain") is FileKind.RASTER
    assert file_kind(tmp_path / "dicom") is FileKind.DICOM
    assert file_kind(tmp_path / "notes") is FileKind.OTHER
    assert file_kind(tmp_path / "absent") is FileKind.OTHER
    assert file_kind(Path("x.NII.GZ")) is FileKind.DATA
    assert file_kind(Path("x.SVS")) is FileKind.SLIDE


def test_a_palette_that_is_not_there_is_damage(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(gradient()).convert("P", palette=Image.Palette.ADAPTIVE).save(stream, "PNG")
    whole = stream.getvalue()
    start = whole.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    (tmp_path / "bare.png").write_bytes(whole[:start] + whole[end:])
    with pytest.raises(Refusal) as refused:
        open_raster(tmp_path / "bare.png")
    assert refused.value.outcome.reason == "unreadable"
