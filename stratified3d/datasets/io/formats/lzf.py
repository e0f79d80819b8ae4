"""Decompression of LZF, which binary_compressed .pcd files use."""


def decompress_lzf(data: bytes | memoryview, size: int) -> bytes:
    """Decompress data whose size is known.

    Args:
        data: runs of literal bytes, and references to bytes that were written before.
        size: bytes of the result; no more are ever held.
    Raises:
        ValueError: the data is damaged.
    """
    out = bytearray()
    position = 0
    while position < len(data):
        if data[position] < 32:
            length = data[position] + 1
            start = position + 1
            position = start + length
            run = data[start:position]
        else:
            length, distance, position = _read_reference(data, position)
            start = len(out) - distance
            if start < 0:
                raise ValueError(f'a reference to {-start} bytes before the beginning')
            run = bytes(out[start : start + length])
            if distance < length:  # it repeats what it writes
                run = (run * length)[:length]

        if len(run) < length or len(out) + length > size:
            raise ValueError(f'its data ends early, or has more than {size} bytes')
        out += run

    if len(out) != size:
        raise ValueError(f'its data has {len(out)} bytes in place of {size}')
    return bytes(out)


def _read_reference(data: bytes | memoryview, position: int) -> tuple[int, int, int]:
    """Length of a reference, its distance backwards, and the position behind it."""
    control = data[position]
    is_long = control >= 224
    end = position + 2 + is_long
    if end > len(data):
        raise ValueError('its last bytes are missing')

    length = (control >> 5) + 2
    if is_long:
        length += data[position + 1]
    high = (control & 31) << 8
    return length, high + data[end - 1] + 1, end
