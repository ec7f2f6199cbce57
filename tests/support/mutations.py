"""What an attacker, a bad disk or a broken export makes of a file."""

from __future__ import annotations

import random
import re

from tests.support.seeds import Seed, alone

_EXTREMES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0x7FFFFFFFFFFFFFFF,
)
_NUMBERS = (
    b"0",
    b"-1",
    b"99999999999",
    b"1e308",
    b"-1e-300",
    b"nan",
    b"inf",
    b"65536",
    b"",
    b"4294967295",
    b"1.5.2",
    b"..",
)


def mutate(data: bytes, donor: bytes, draw: random.Random) -> bytes:
    """`data` damaged in one to three of nine ways; `donor` is another sound file of the family."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        data = draw.choice(_WAYS)(bytearray(data or b"\0"), donor, draw)
    return data


def _place(data: bytearray, draw: random.Random) -> int:
    # What matters most stands at the start or the end of most formats.
    reach = draw.choice((64, 512, len(data), len(data)))
    place = draw.randrange(min(reach, len(data)))
    return place if draw.random() < 0.8 else len(data) - 1 - place


def _flip(data: bytearray, donor: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.choice((1, 1, 4, 16))):
        data[_place(data, draw)] ^= 1 << draw.randrange(8)
    return bytes(data)


def _noise(data: bytearray, donor: bytes, draw: random.Random) -> bytes:
    place, size = _place(data, draw), draw.choice((1, 4, 40, 400))
    data[place : place + size] = draw.randbytes(min(size, len(data) - place))
    return bytes(data)


def _cut(data: bytearray, donor: bytes, draw: random.Random) -> bytes:
    return bytes(data[: draw.randrange(len(data))])


def _splice(data: bytearray, donor: bytes, draw: random.Random) -> bytes:
    return bytes(data[: draw.randrange(len(data))]) + donor[draw.randrange(len(donor)) :]


def _extreme(data: bytearray, donor: bytes, draw: random.Random) -> bytes:
    size, value = draw.choice((1, 2, 4, 8)), draw.choice(_EXTREMES)
    place = _place(data, draw) // draw.choice((1, 2, 4)) * 1
    data[place : place + size] = (value % 256**size).to_bytes(size, draw.choice(("little", "big")))  # type: ignore[arg-type]
    return bytes(data)


def _repeat(data: bytearray, donor: bytes, draw: random.Random) -> bytes:
    place = _place(data, draw)
    block = data[place : place + draw.choice((1, 16, 200, 2000))]
    return bytes(data[:place] + block * draw.choice((2, 5, 50)) + data[place:])


def _zero(data: bytearray, donor: bytes, draw: random.Random) -> bytes:
    place = draw.choice((0, _place(data, draw)))
    size = min(draw.choice((8, 132, 352, 1000)), len(data) - place)
    data[place : place + size] = bytes([draw.choice((0, 0, 255, 32))]) * size
    return bytes(data)


def _lose(data: bytearray, donor: bytes, draw: random.Random) -> bytes:
    place = _place(data, draw)
    del data[place : place + draw.choice((1, 2, 30, 300))]
    return bytes(data)


def _number(data: bytearray, donor: bytes, draw: random.Random) -> bytes:
    found = list(re.finditer(rb"-?[0-9][0-9.]*", bytes(data)))
    if not found:
        return _extreme(data, donor, draw)
    match = draw.choice(found)
    value = draw.choice(_NUMBERS)
    if draw.random() < 0.7:  # of the same length, so that what follows is still found
        value = value[: len(match[0])].ljust(len(match[0]), draw.choice((b" ", b"9", b"0")))
    return bytes(data[: match.start()]) + value + bytes(data[match.end() :])


_WAYS = (_flip, _noise, _cut, _splice, _extreme, _extreme, _repeat, _zero, _lose, _number)


def mutant(seeds: list[Seed], number: int, salt: int = 0) -> tuple[str, bytes]:
    """Name and bytes of mutant `number` of a family; the same for the same numbers."""
    draw = random.Random(f"{seeds[0].name} {number} {salt}")
    seed, donor = seeds[number % len(seeds)], draw.choice(seeds)
    data = seed.wrap(mutate(alone(seed.inner, number + 1000), donor.inner, draw))
    stem, _, suffix = seed.name.partition(".")
    return f"{stem}-{number:05d}.{suffix}", data
