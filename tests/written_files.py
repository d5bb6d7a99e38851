"""Image files that Pillow does not write: PNG of few bits, TIFF of which 0 is white."""

import struct
import zlib


def write_png(path, rows, depth, transparent=None, colours=1):
    """PNG of levels of `depth` bits: rows of numbers, gray, or RGB for three `colours`."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    bits = ["".join(format(level, f"0{depth}b") for level in row) for row in rows]
    raw = b"".join(b"\0" + int(row, 2).to_bytes(len(row) // 8, "big") for row in bits)
    kind = 2 if colours == 3 else 0
    size = struct.pack(">II", len(rows[0]) // colours, len(rows))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + bytes([depth, kind, 0, 0, 0]))
    if transparent is not None:
        data += chunk(b"tRNS", struct.pack(f">{colours}H", *transparent))
    path.write_bytes(data + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


def write_tiff(path, rows, depth, photometric):
    """Gray TIFF of levels of `depth` bits; photometric 0 says that 0 is white, 1 that it is black.

    Levels of 16 bits are little-endian, as the file is.
    """
    bits = ["".join(format(level, f"0{depth}b") for level in row) for row in rows]
    levels = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in bits)
    if depth == 16:
        levels = struct.pack(f"<{len(levels) // 2}H", *(level for row in rows for level in row))
    tags = [(256, len(rows[0])), (257, len(rows)), (258, depth), (259, 1), (262, photometric)]
    tags += [(273, None), (277, 1), (278, len(rows)), (279, len(levels))]
    offset = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, offset if v is None else v) for tag, v in tags]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + struct.pack("<I", 0)
    path.write_bytes(head + levels)
