"""Tiles of TIFF slides decoded one by one: several times faster than whole regions by OpenSlide, and OME's pyramids."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from tifffile.tifffile import jpeg_shape

from preprocess.conversion import failed

Array = np.ndarray[Any, np.dtype[np.uint8]]

_JPEG = 7
_RGB, _YCBCR = 2, 6
_END_OF_IMAGE = b"\xff\xd9"
_MAX_PAGES = 1000
_UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_UM_OF_UNIT = {2: 25_400.0, 3: 10_000.0}
"""Of TIFF's ResolutionUnit: inch and centimetre."""

_ERRORS = (
    tifffile.TiffFileError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    RuntimeError, MemoryError, AssertionError, struct.error,
)  # fmt: skip
"""What tifffile and its codecs raise for bytes that are not sound; the codecs' own errors are RuntimeErrors."""


@contextmanager
def sound_tiff() -> Iterator[None]:
    """Turn what tifffile raises inside the block into `failed: unreadable`."""
    try:
        yield
    except _ERRORS as error:
        raise failed("unreadable", f"the TIFF is damaged or cut short ({type(error).__name__})") from error


class TiledPage:
    """One tiled page of 8-bit RGB or YCbCr. `sparse` says that some of its tiles are left out of the file."""

    def __init__(self, page: tifffile.TiffPage) -> None:
        self._page = page
        self.height, self.width = int(page.imagelength), int(page.imagewidth)
        self._high, self._wide = int(page.tilelength), int(page.tilewidth)
        self._across = -(-self.width // self._wide)
        tiles = self._across * -(-self.height // self._high)
        self._places = tuple(zip(page.dataoffsets[:tiles], page.databytecounts[:tiles], strict=True))
        self.sparse = len(self._places) < tiles or any(not size for _, size in self._places)
        self._tables = page.jpegtables if self.is_jpeg else None

    @staticmethod
    def fits(page: tifffile.TiffPage) -> bool:
        """Whether the page is one that this class reads."""
        return bool(
            page.is_tiled and page.dtype == np.uint8 and page.samplesperpixel == 3 and page.planarconfig == 1
            and page.bitspersample == 8 and page.imagedepth == 1 and page.photometric in (_RGB, _YCBCR)
            and 8 <= page.tilewidth <= 8192 and 8 <= page.tilelength <= 8192
        )  # fmt: skip

    @property
    def is_jpeg(self) -> bool:
        """Whether tiles are compressed as JPEG."""
        return self._page.compression == _JPEG

    def read(self, x: int, y: int, width: int, height: int) -> Array:
        """RGB (height, width, 3) uint8; what lies outside or is left out of the file is white.

        Refused: `broken_tile`.
        """
        bottom, right = min(y + height, self.height), min(x + width, self.width)
        # Tiles cover all that lies inside: filling tens of megabytes beforehand takes a tenth as long as decoding them.
        covered = not self.sparse and bottom == y + height and right == x + width
        shape = (height, width, 3)
        region = np.empty(shape, dtype=np.uint8) if covered else np.full(shape, 255, dtype=np.uint8)
        for row in range(y // self._high, -(-bottom // self._high)):
            for column in range(x // self._wide, -(-right // self._wide)):
                tile = self._decode(row * self._across + column)
                if tile is None:
                    continue
                top, left = row * self._high, column * self._wide
                y0, x0 = max(y, top), max(x, left)
                y1, x1 = min(bottom, top + self._high), min(right, left + self._wide)
                region[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return region

    def _check_jpeg(self, data: bytes) -> None:
        """Raises `ValueError` for what the decoder would take: it makes room for any size that a tile claims, and fills
        a picture that breaks off with grey.
        """
        if _END_OF_IMAGE not in data[-64:]:
            raise ValueError("no end of image")
        if jpeg_shape(data)[1:] != (self._high, self._wide, 3):
            raise ValueError("not the tile's size")

    def _decode(self, index: int) -> Array | None:
        try:
            offset, size = self._places[index]
            if not size:
                return None
            handle = self._page.parent.filehandle
            handle.seek(offset)
            data = handle.read(size)
            if self.is_jpeg:
                self._check_jpeg(data)
            decoded, _, _ = self._page.decode(data, index, jpegtables=self._tables, _fullsize=True)
            if decoded is None or decoded.shape != (1, self._high, self._wide, 3) or decoded.dtype != np.uint8:
                raise ValueError("not the tile's size")
        except _ERRORS as error:
            raise failed("broken_tile", "a tile of the slide cannot be decoded") from error
        tile: Array = decoded[0]
        return tile


class JpegTiles:
    """Those levels of a slide that are pages of whole JPEG tiles, by index: OpenSlide's other way in."""

    def __init__(self, file: tifffile.TiffFile, pages: dict[int, TiledPage]) -> None:
        self._file = file
        self.pages = pages

    @classmethod
    def of(cls, path: Path, sizes: Sequence[tuple[int, int]]) -> JpegTiles | None:
        """`sizes` are (width, height) of the levels; None if no level is such a page. Refused: `unreadable`."""
        with sound_tiff(), ExitStack() as opened:
            file = opened.enter_context(tifffile.TiffFile(path))
            _refuse_endless(file)
            pages: dict[int, TiledPage] = {}
            for index, size in enumerate(sizes):
                fitting = (page for page in _first_pages(file) if (page.imagewidth, page.imagelength) == size)
                page = next(fitting, None)
                if page is not None and TiledPage.fits(page):
                    found = TiledPage(page)
                    if found.is_jpeg and not found.sparse:
                        pages[index] = found
            if pages:
                opened.pop_all()
                return cls(file, pages)
        return None

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def _refuse_endless(file: tifffile.TiffFile) -> None:
    """Refuse a chain of directories beyond measure, or that comes back on itself: the library follows it for hours."""
    kind, handle = file.tiff, file.filehandle
    offset = file.pages.first.offset
    for _ in range(_MAX_PAGES):
        handle.seek(offset)
        (tags,) = struct.unpack(kind.tagnoformat, handle.read(kind.tagnosize))
        handle.seek(offset + kind.tagnosize + tags * kind.tagsize)
        following = handle.read(kind.offsetsize)
        if len(following) < kind.offsetsize:
            return
        (offset,) = struct.unpack(kind.offsetformat, following)
        if not 0 < offset < handle.size:
            return
    raise failed("unreadable", f"a TIFF of more than {_MAX_PAGES} pictures, or of directories in a circle")


def _first_pages(file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    for number in range(min(len(file.pages), _MAX_PAGES)):
        yield file.pages[number].aspage()


class TiffPyramid:
    """The first picture of a tiled TIFF with its reduced levels, as OME-TIFF keeps them in sub-pages."""

    def __init__(self, path: Path) -> None:
        """Refused: `unreadable`; `unsupported_format` if it is not tiled 8-bit RGB."""
        with sound_tiff(), ExitStack() as opened:
            self._file = opened.enter_context(tifffile.TiffFile(path))
            _refuse_endless(self._file)
            levels = self._file.series[0].levels if self._file.series else []
            pages = [level.keyframe.aspage() for level in levels[:_MAX_PAGES]]
            self.pages = [TiledPage(page) for page in pages if TiledPage.fits(page)]
            self.um_a_px = _ome_resolution(self._file.ome_metadata or "") or (_resolution(pages[0]) if pages else None)
            if not self.pages or len(self.pages) < len(pages):
                raise failed("unsupported_format", "a TIFF that is not tiled 8-bit RGB")
            opened.pop_all()

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def _ome_resolution(text: str) -> float | None:
    """µm a px of the first picture described. Searched, not parsed: XML of unknown origin may be a bomb."""
    pixels = re.search(r"<(?:\w+:)?Pixels\s[^>]{0,4000}>", text[:1_000_000])
    if pixels is None:
        return None
    size = re.search(r'PhysicalSizeX="([0-9.eE+-]{1,30})"', pixels[0])
    unit = re.search(r'PhysicalSizeXUnit="([^"]{1,8})"', pixels[0])
    if size is None or (unit is not None and unit[1] not in _UM):
        return None
    return float(size[1]) * (_UM[unit[1]] if unit is not None else 1.0)


def _resolution(page: tifffile.TiffPage) -> float | None:
    unit, value = page.tags.get("ResolutionUnit"), page.tags.get("XResolution")
    if unit is None or value is None or int(unit.value) not in _UM_OF_UNIT:
        return None
    above, below = value.value
    return _UM_OF_UNIT[int(unit.value)] * below / above if above > 0 else None
