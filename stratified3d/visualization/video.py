"""Videos of picture files: .mp4 written by OpenCV, .gif by Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

SUFFIXES = ('.mp4', '.gif')


def write_video(path: str | Path, pictures: Sequence[Path], rate: float = 2.0) -> None:
    """Write a video of picture files of one size.

    Args:
        path: .mp4 (MPEG-4) or .gif.
        pictures: .png files in order; read one at a time.
        rate: pictures per second.
    Raises:
        ValueError: no pictures, pictures of different sizes, another suffix, a rate of zero or
            less.
        OSError: the file cannot be written, or OpenCV has no encoder.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f'{path}: videos are {" or ".join(SUFFIXES)} files')
    if not pictures:
        raise ValueError(f'{path}: a video needs pictures, there are 0')
    if rate <= 0:
        raise ValueError(f'{path}: a rate of {rate} pictures per second: it must be above 0')

    size = _common_size(pictures)
    partial = path.with_name(f'{path.stem}.partial{path.suffix}')
    if path.suffix == '.gif':
        _write_gif(partial, pictures, rate)
    else:
        _write_mp4(partial, pictures, rate, size)
    partial.replace(path)


def _common_size(pictures: Sequence[Path]) -> tuple[int, int]:
    from PIL import Image

    first = Image.open(pictures[0]).size
    for picture in pictures:
        size = Image.open(picture).size
        if size != first:
            raise ValueError(f'{picture}: {size} pixels, the first picture has {first}')
    return first


def _write_gif(path: Path, pictures: Sequence[Path], rate: float) -> None:
    from PIL import Image

    frames = (
        Image.open(picture).convert('P', palette=Image.Palette.ADAPTIVE) for picture in pictures
    )
    first, *others = frames
    duration = round(1000 / rate)  # ms
    first.save(path, save_all=True, append_images=others, duration=duration, loop=0)


def _write_mp4(path: Path, pictures: Sequence[Path], rate: float, size: tuple[int, int]) -> None:
    import cv2
    from PIL import Image

    codec = cv2.VideoWriter.fourcc(*'mp4v')
    writer = cv2.VideoWriter(str(path), codec, rate, size)
    if not writer.isOpened():
        raise OSError(
            f'{path}: OpenCV cannot write it: is the folder writable, has OpenCV an MPEG-4 '
            'encoder? A .gif needs neither'
        )

    for picture in pictures:
        pixels = np.asarray(Image.open(picture).convert('RGB'))
        writer.write(np.ascontiguousarray(pixels[..., ::-1]))  # OpenCV takes BGR
    writer.release()
