"""Decompression of LZF, which binary_compressed .pcd files use."""


def decompress_lzf(data: bytes, size: int) -> bytes:
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
        control = data[position]
        position += 1
        if control < 32:  # literals
            length = control + 1
            run = data[position : position + length]
            position += length
        else:
            if control >= 224:  # a long reference has its length in a byte of its own
                control += data[position] << 5 if position < len(data) else 0
                position += 1
            length = (control >> 5) + 2
            low = data[position] if position < len(data) else 0
            position += 1
            start = len(out) - 1 - ((control & 31) << 8 | low)
            if start < 0:
                raise ValueError(f'a reference to {-start} bytes before the beginning')
            run = bytes(out[start : start + length])
            run = (run * (length // len(run) + 1))[:length]  # it may overlap what it writes

        if len(run) < length or len(out) + length > size:
            raise ValueError(f'more or fewer than the {size} bytes that the header announces')
        out += run
    if len(out) != size or position > len(data):
        raise ValueError(f'{len(out)} bytes in place of {size}')
    return bytes(out)
