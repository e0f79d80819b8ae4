"""Several pictures as one moving one: .mp4 by OpenCV, .gif by Pillow."""

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
        rate: pictures a second.
    Raises:
        ValueError: no pictures, pictures of different sizes, another suffix, a rate that is not
        above zero.
        OSError: the file cannot be written, or OpenCV has no encoder.
    """
    from PIL import Image

    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f'{path}: videos are {" or ".join(SUFFIXES)} files')
    if not pictures or rate <= 0:
        raise ValueError(f'{path}: {len(pictures)} pictures at {rate} a second make no video')
    size = Image.open(pictures[0]).size
    for picture in pictures:
        if Image.open(picture).size != size:
            raise ValueError(
                f'{picture}: {Image.open(picture).size} pixels, the first picture has {size}'
            )
    partial = path.with_name(f'{path.stem}.partial{path.suffix}')
    if path.suffix == '.gif':
        first, *others = (
            Image.open(picture).convert('P', palette=Image.Palette.ADAPTIVE) for picture in pictures
        )
        first.save(
            partial, save_all=True, append_images=others, duration=round(1000 / rate), loop=0
        )
    else:
        import cv2

        writer = cv2.VideoWriter(str(partial), cv2.VideoWriter_fourcc(*'mp4v'), rate, size)
        if not writer.isOpened():
            raise OSError(
                f'{path}: OpenCV cannot write it: is the folder writable, has OpenCV an MPEG-4 encoder? '
                'A .gif needs neither'
            )
        for picture in pictures:
            writer.write(
                np.ascontiguousarray(np.asarray(Image.open(picture).convert('RGB'))[..., ::-1])
            )
        writer.release()
    partial.replace(path)
