"""Files made to overflow, to be read twice, to lead elsewhere or to be named so that nothing can name them."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.support import seeds
from tests.support.attack import MEASURE, PEAK_KIB, Run


def zeros(count: int) -> tuple[bytes, int]:
    """A raw deflate stream of `count` zero bytes, made in no time, and their Adler checksum."""
    size = 1 << 24
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    end = last.compress(bytes(count % size)) + last.flush()
    return block * (count // size) + end, (count % 65521) << 16 | 1


def png_bomb(side: int) -> bytes:
    stream, adler = zeros(side * (side + 1))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"\x78\xda" + stream + struct.pack(">I", adler)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + name + data + bytes(4) for name, data in chunks]
    return bytes(seeds.mend_png(b"\x89PNG\r\n\x1a\n" + b"".join(parts)))


def gzip_bomb(head: bytes, count: int) -> bytes:
    """A gzip file of `head` and then zeros; its checksum is wrong, which shows only at its very end."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + start + zeros(count)[0] + bytes(8)


def deflated_bomb(modality: str, count: int) -> bytes:
    """A deflated DICOM object with a private element of `count` zeros."""
    plain = seeds.dicom(modality, "deflated", seeds.smooth(24, 20))
    start = 144 + struct.unpack_from("<I", plain, 140)[0]
    elements = zlib.decompress(plain[start:], -zlib.MAX_WBITS)
    place = elements.index(b"\x28\0\x02\0US")
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    private = b"\x09\0\x10\x10OB\0\0" + struct.pack("<I", count)
    first = packer.compress(elements[:place] + private) + packer.flush(zlib.Z_FULL_FLUSH)
    body = first + zeros(count - count % (1 << 24))[0]
    return plain[:start] + body + b"\0" * (len(body) % 2)


def nifti_header(shape: tuple[int, int, int], offset: float = 352.0) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<4f", header, 76, 1, 2, 2, 2)
    struct.pack_into("<3f", header, 108, offset, 1, 0)
    struct.pack_into("<h", header, 254, 1)
    struct.pack_into("<12f", header, 280, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0)
    header[344:348] = b"n+1\0"
    return bytes(header)


def test_bombs_among_radiographs(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    sound = seeds.dicom("CR", "explicit", seeds.smooth(24, 20))
    (folder / "sound.dcm").write_bytes(seeds.alone(sound, 1))
    (folder / "large.png").write_bytes(png_bomb(60_000))
    (folder / "deflated.dcm").write_bytes(deflated_bomb("CR", 3 << 30))
    forged = seeds.dicom("CR", "explicit", seeds.smooth(24, 20), NumberOfFrames="2000000000")
    (folder / "frames.dcm").write_bytes(seeds.alone(forged, 2))
    side = seeds.alone(seeds.dicom("CR", "j2k", seeds.smooth(24, 20)), 3)
    rows = side.index(b"\x28\0\x10\0US\x02\0") + 8
    (folder / "sides.dcm").write_bytes(side[:rows] + b"\xff\xff\x28\0\x11\0US\x02\0\xff\xff" + side[rows + 12 :])
    with (folder / "hole.dcm").open("wb") as file:  # ends 5 GB after its header without taking any room
        file.write(seeds.alone(sound, 4)[:-960])
        file.seek(-4, os.SEEK_CUR)
        file.write(struct.pack("<I", 0xFFFFFFF0))
        file.truncate(5 << 30)
    with (folder / "hole.jpg").open("wb") as file:
        file.write(b"\xff\xd8\xff\xe1\xff\xff")
        file.truncate(5 << 30)
    run = Run("xray", folder, "--size", "16")
    assert run.reasons.pop("sound.dcm") == "written"
    assert run.reasons.pop("frames.dcm") in ("multi_frame", "unreadable")
    assert set(run.reasons.values()) == {"too_large"}, run.reasons
    assert run.peak_kib < PEAK_KIB


def test_bombs_among_volumes(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "sound.dcm").write_bytes(seeds.dicom("CT", "explicit", seeds.smooth(10, 16, 16)))
    (folder / "large.nii.gz").write_bytes(gzip_bomb(nifti_header((20_000, 20_000, 20_000)), 1 << 30))
    (folder / "offset.nii.gz").write_bytes(gzip_bomb(nifti_header((12, 12, 12), 3e9), 4 << 30))
    (folder / "trailing.nii.gz").write_bytes(gzip_bomb(nifti_header((12, 12, 12)), 4 << 30))
    (folder / "deflated.dcm").write_bytes(deflated_bomb("CT", 3 << 30))
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\nElementSpacing = 2 2 2\n"
    stream, adler = zeros(1 << 30)
    packed = b"\x78\xda" + stream + struct.pack(">I", adler)
    size = f"CompressedDataSize = {len(packed)}\n"
    for name, dims in (("large", "60000 60000 60000"), ("small", "12 12 12")):
        text = f"{head}{size}DimSize = {dims}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        (folder / f"{name}.mha").write_bytes(text.encode() + packed)
    # Fixed arrays of ten dimensions wait for this in the library.
    (folder / "dimensions.mha").write_bytes(
        head.replace("= 3", "= 65536").encode()
        + b"DimSize = 12 12 12\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nsizes: {}\nspacings: 2 2 2\nencoding: gzip\nendian: little\n\n"
    (folder / "large.nrrd").write_bytes(nrrd.format("60000 60000 60000").encode() + gzip_bomb(b"", 1 << 30))
    (folder / "small.nrrd").write_bytes(nrrd.format("12 12 12").encode() + gzip_bomb(b"", 1 << 30))
    run = Run("ct", folder, "--window", "8,12,12")
    assert run.reasons.pop("sound.dcm") == "written"
    for name in ("large.nii.gz", "large.mha", "large.nrrd", "deflated.dcm"):
        assert run.reasons.pop(name) == "too_large", name
    # What lies behind the voxels need not be looked at; zeros alone are no CT.
    assert set(run.reasons.values()) <= {"unreadable", "truncated_pixels", "not_hu", "constant"}, run.reasons
    assert run.peak_kib < PEAK_KIB


def forged_tiff(width: int, height: int, tile: int, data: bytes) -> bytes:
    """A deflated RGB TIFF at 0.5 µm a px whose only tile that is there is `data`."""
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3),
        (282, 5, 1, 400), (283, 5, 1, 400), (296, 3, 1, 3), (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 512),
        (325, 4, 1, len(data)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    return head.ljust(400, b"\0") + struct.pack("<II", 20000, 1) + bytes(104) + data


def test_bombs_among_slides(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    slides = {seed.name: seed for seed in seeds.tiff_seeds()}
    (folder / "sound.tiff").write_bytes(slides["jpeg.tiff"].inner)
    stream, adler = zeros(60_000 * 60_000 * 3)
    packed = b"\x78\xda" + stream + struct.pack(">I", adler)
    (folder / "tile.tiff").write_bytes(forged_tiff(60_000, 60_000, 60_000, packed))
    (folder / "tile.svs").write_bytes(forged_tiff(30_000, 30_000, 32_752, packed))
    (folder / "size.tiff").write_bytes(forged_tiff(4_000_000_000, 4_000_000_000, 256, packed[:5000]))
    (folder / "wide.tiff").write_bytes(forged_tiff(2_000_000_000, 64, 256, packed[:5000]))
    (folder / "large.png").write_bytes(png_bomb(60_000))
    run = Run("pathology", folder, "--size", "32")
    assert run.reasons.pop("sound.tiff") == "written"
    assert set(run.reasons.values()) <= {"too_large", "unreadable", "no_tissue"}, run.reasons
    assert run.peak_kib < PEAK_KIB


NAMES = [
    b"line\nbreak", b"car\rriage", b"quote\"'`", b"..hidden", b"a..b", b"-leading", b"--out", b"semi;colon,comma",
    b"$(touch pwned)", b"%s%n{0}", b"tab\tbed", b"rtl\xe2\x80\xaegnp", b"\xf0\x9f\xab\x80", b"bad\xff\xfe\x80",
    b"bell\x07\x1b[31m", b"cafe\xcc\x81", b"caf\xc3\xa9", b"nul", b" ", b"&lt;script&gt;<script>alert(1)",
    b"n" * 251,
]  # fmt: skip


@pytest.mark.parametrize("modality", ["report", "xray"])
def test_no_name_is_too_strange(modality: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    suffix = {"report": b".txt", "xray": b".png"}[modality]

    def content(number: int) -> bytes:
        if modality == "report":
            return f"FINDINGS: Case {number} is clear.\nIMPRESSION: No acute disease in {number}.\n".encode()
        from PIL import Image

        return bytes(seeds.png(Image.fromarray((seeds.smooth(24, 20 + number) >> 4).astype(np.uint8))))

    for number, name in enumerate(NAMES):
        place = os.fsencode(folder) + b"/" + name
        with open(place + suffix, "wb") as file:  # noqa: PTH123 -- names that are no text
            file.write(content(number))
        if number % 3 == 0:
            os.mkdir(place)  # noqa: PTH102
            with open(place + b"/inside" + suffix, "wb") as file:  # noqa: PTH123
                file.write(content(100 + number))
    expected = {
        (Path(path) / name).relative_to(folder).as_posix() for path, _, names in os.walk(folder) for name in names
    }
    run = Run(modality, folder, "--label-column", "label")
    assert set(run.reasons) == expected
    assert set(run.reasons.values()) == {"written"}, run.reasons
    assert not (Path.cwd() / "pwned").exists()
    assert not run.holds(b"pwned")
    assert not run.holds(b"alert(1)")
    again = Run(modality, folder, "--label-column", "label")
    assert "up to date" in again.text


def test_links_pipes_and_devices_hang_nothing(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    text = "FINDINGS: The lungs are clear.\nIMPRESSION: No acute disease number {}.\n"
    (folder / "sound.txt").write_text(text.format(1))
    (outside / "other.txt").write_text(text.format(2))
    (folder / "out of the tree.txt").symlink_to(outside / "other.txt")
    (folder / "dangling.txt").symlink_to(folder / "nowhere.txt")
    (folder / "itself.txt").symlink_to(folder / "itself.txt")
    (folder / "zero.txt").symlink_to("/dev/zero")
    (folder / "null.txt").symlink_to("/dev/null")
    (folder / "loop").symlink_to(folder)
    (folder / "below").mkdir()
    (folder / "below" / "up").symlink_to(folder / "below")
    (folder / "folder.txt").mkdir()
    os.mkfifo(folder / "pipe.txt")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(folder / "socket.txt"))
    closed = folder / "closed.txt"
    closed.write_text(text.format(3))
    closed.chmod(0)
    try:
        run = Run("report", folder)
    finally:
        listener.close()
    if os.geteuid() == 0:  # mode 000 keeps nobody from reading who is root
        assert run.reasons.pop("closed.txt") == "written"
    else:
        assert run.reasons.pop("closed.txt") == "unreadable"
    assert run.reasons == {
        "sound.txt": "written", "out of the tree.txt": "written", "dangling.txt": "unreadable",
        "itself.txt": "unreadable", "zero.txt": "not_an_input", "null.txt": "not_an_input", "pipe.txt": "not_an_input",
        "socket.txt": "not_an_input",
    }  # fmt: skip


def test_headers_that_name_other_files_lead_nowhere(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    values = (seeds.smooth(12, 12, 12).astype(np.int32) - 1024).astype(np.int16)
    (outside / "secret.raw").write_bytes(values.tobytes())
    (folder / "sound.raw").write_bytes((values + 1).tobytes())
    meta = "ObjectType = Image\nNDims = 3\nBinaryData = True\nElementSpacing = 2 2 2\nDimSize = 12 12 12\n"
    meta += "ElementType = MET_SHORT\n"
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nsizes: 12 12 12\nspacings: 2 2 2\nencoding: raw\nendian: little\n"
    (folder / "sound.mhd").write_text(f"{meta}ElementDataFile = sound.raw\n")
    ways = {
        "absolute": str(outside / "secret.raw"), "above": "../outside/secret.raw", "dotted": "./../outside/secret.raw",
        "passwd": "/etc/passwd", "link": "link.raw",
    }  # fmt: skip
    (folder / "link.raw").symlink_to(outside / "secret.raw")
    for name, target in ways.items():
        for suffix in ("mhd", "mha"):
            (folder / f"{name}.{suffix}").write_text(f"{meta}ElementDataFile = {target}\n")
        for suffix in ("nhdr", "nrrd"):
            (folder / f"{name}.{suffix}").write_text(f"{nrrd}data file: {target}\n\n")
    (folder / "list.mhd").write_text(f"{meta}ElementDataFile = LIST\n{outside / 'secret.raw'}\n")
    (folder / "list.nhdr").write_text(f"{nrrd}data file: LIST\n../outside/secret.raw\n")
    (folder / "twice.mhd").write_text(
        f"{meta}ElementDataFile = {outside / 'secret.raw'}\nElementDataFile = sound.raw\n"
    )
    (folder / "pattern.mhd").write_text(f"{meta}ElementDataFile = ../outside/secret%d.raw 1 1 1\n")
    run = Run("ct", folder, "--window", "8,12,12")
    assert run.reasons.pop("sound.mhd") == run.reasons.pop("sound.raw") == "written"
    # A link is the owner's own doing; files named in a header are whoever's sent it.
    by_link = {name: run.reasons.pop(name) for name in list(run.reasons) if name.startswith("link.")}
    assert set(by_link.values()) <= {"written", "detached_pixels", "unreadable", "duplicate", "not_an_input"}, by_link
    assert "written" not in run.reasons.values(), run.reasons
    manifest = json.loads((run.out / "manifest.json").read_bytes())
    assert manifest["inputs"]["written"] == 2 + sum(reason == "written" for reason in by_link.values())


def test_slides_that_name_other_files_lead_nowhere(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "forged").mkdir(parents=True)
    slides = {seed.name: seed for seed in seeds.tiff_seeds()}
    (folder / "sound.tiff").write_bytes(slides["jpeg.tiff"].inner)
    (tmp_path / "secret.dat").write_bytes(b"Zzsecret" * 4000)
    (folder / "forged.mrxs").write_bytes(b"\xff\xd8\xff\xd9")
    (folder / "forged" / "Slidedat.ini").write_text(
        "[GENERAL]\nSLIDE_VERSION = 01.02\nSLIDE_ID = Zz\nIMAGENUMBER_X = 4\nIMAGENUMBER_Y = 4\n"
        "OBJECTIVE_MAGNIFICATION = 20\n"
        "[HIERARCHICAL]\nINDEXFILE = ../../secret.dat\nHIER_COUNT = 1\nNONHIER_COUNT = 0\n"
        "[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = ../../secret.dat\n"
    )
    (folder / "forged.vms").write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\nImageFile=../../../../etc/passwd\n"
        "MapFile=../secret.dat\nOptimisationFile=\n"
    )
    run = Run("pathology", folder, "--size", "32")
    assert run.reasons.pop("sound.tiff") == "written"
    assert set(run.reasons.values()) <= {"unreadable", "not_an_input"}, run.reasons
    assert not run.holds(b"Zzsecret")


def test_a_dicomdir_is_no_image(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    from pydicom.fileset import FileSet

    source = tmp_path / "one.dcm"
    needed = {"PatientName": "Zz", "StudyID": "1", "StudyDate": "20200101", "StudyTime": "12", "SeriesNumber": 1}
    source.write_bytes(seeds.dicom("CT", "explicit", seeds.smooth(10, 16, 16), InstanceNumber=1, **needed))
    files = FileSet()
    files.add(source)
    files.write(folder)
    run = Run("ct", folder, "--window", "8,12,12")
    assert run.reasons.pop("DICOMDIR") in ("no_pixels", "not_an_input")
    assert set(run.reasons.values()) == {"written"}


def test_measuring_sees_a_large_child() -> None:
    """The limit above would hold for nothing if the measure saw only the direct child."""
    grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(300 << 20)'])"
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, sys.executable, "-c", grandchild], capture_output=True, text=True
    )
    assert int(done.stderr.split()[-1]) > 300 << 10
