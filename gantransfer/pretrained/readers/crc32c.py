"""CRC-32C (Castagnoli) of large arrays in NumPy: many parts side by side, joined by what zeros do to a checksum.

Source: RFC 3720, appendix B.4 (polynomial); the joining is that of zlib's `crc32_combine`.
"""

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78  # bit-reversed
LANES = 1 << 14
# Below this many bytes the lanes cost more than they save.
_SMALL = 1 << 12


@functools.cache
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    return table


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of `data`.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    values = np.frombuffer(data, np.uint8)
    width = len(values) // LANES
    crc = 0xFFFFFFFF
    if len(values) >= max(_SMALL, LANES):
        joined = _joined(_lanes(values[: width * LANES].reshape(LANES, width)), width)
        # What the initial ones become behind all these bytes.
        crc = int(joined ^ _after_zeros(np.array([crc], np.uint32), width * LANES)[0])
        values = values[width * LANES :]
    table = _small_table()
    for byte in values.tobytes():
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def unmasked(crc: int) -> int:
    """The checksum behind the masked form that LevelDB and TensorFlow store."""
    rotated = (crc - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


@functools.cache
def _small_table() -> tuple[int, ...]:
    return tuple(int(entry) for entry in _table())


def _lanes(parts: np.ndarray) -> np.ndarray:
    table, crc = _table(), np.zeros(len(parts), np.uint32)
    for column in range(0, parts.shape[1], 4096):
        # Transposed in pieces, so that a step reads neighbouring bytes and the copy stays small.
        for values in np.ascontiguousarray(parts[:, column : column + 4096].T):
            crc = (crc >> 8) ^ table[(crc ^ values) & 0xFF]
    return crc


def _joined(crcs: np.ndarray, width: int) -> np.uint32:
    while len(crcs) > 1:
        crcs = _after_zeros(crcs[::2], width) ^ crcs[1::2]
        width *= 2
    return crcs[0]


def _after_zeros(crcs: np.ndarray, count: int) -> np.ndarray:
    """What checksums (without initial and final ones) become behind `count` zero bytes: a linear map of 32 bits."""
    rows = _shift(count)
    result = np.zeros_like(crcs)
    for bit in range(32):
        result ^= np.where((crcs >> bit) & 1, rows[bit], np.uint32(0))
    return result


@functools.lru_cache(maxsize=256)
def _shift(count: int) -> np.ndarray:
    # Images of the 32 unit vectors, by repeated squaring of the map of one zero byte.
    table = _table()
    units = np.uint32(1) << np.arange(32, dtype=np.uint32)
    result, power = units, (units >> 8) ^ table[units & 0xFF]
    while count:
        if count & 1:
            result = _through(power, result)
        power = _through(power, power)
        count >>= 1
    return result


def _through(rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    result = np.zeros_like(vectors)
    for bit in range(32):
        result ^= np.where((vectors >> bit) & 1, rows[bit], np.uint32(0))
    return result
