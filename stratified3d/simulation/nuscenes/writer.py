"""Write the 13 tables of the nuScenes format, scene by scene, from the records of keyframes."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from stratified3d.simulation.nuscenes.schema import (
    ATTRIBUTES,
    CAMERAS,
    CATEGORIES,
    INTRINSIC,
    TABLES,
    VISIBILITIES,
)
from stratified3d.simulation.nuscenes.splits import scene_name


def token(*parts) -> str:
    """A 32-digit token that depends on its parts alone."""
    return hashlib.md5('/'.join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def quaternion(rotation: np.ndarray) -> list[float]:
    """Unit quaternion w, x, y, z of a [3, 3] rotation (Shepperd's method)."""
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = rotation
    w2 = 1 + m00 + m11 + m22  # 4 w^2
    x2 = 1 + m00 - m11 - m22
    y2 = 1 - m00 + m11 - m22
    z2 = 1 - m00 - m11 + m22
    wx = m21 - m12  # 4 w x
    wy = m02 - m20
    wz = m10 - m01
    xy = m01 + m10
    xz = m02 + m20
    yz = m12 + m21
    products = np.array(
        [
            [w2, wx, wy, wz],
            [wx, x2, xy, xz],
            [wy, xy, y2, yz],
            [wz, xz, yz, z2],
        ]
    )
    # the row of the largest component divides by nothing small
    q = products[np.argmax([w2, x2, y2, z2])]
    return [float(v) for v in q / np.linalg.norm(q)]


def yaw_quaternion(yaw: float) -> list[float]:
    """Unit quaternion w, x, y, z of a rotation by `yaw` rad about z."""
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def visibility_token(share: float) -> str:
    """nuScenes' bin, '1' to '4', of an unoccluded share 0 to 1."""
    return str(1 + sum(share >= limit for limit in (0.4, 0.6, 0.8)))


class Tables:
    """Writes every table as one JSON list, row by row, so that memory holds one scene at a time.

    Args:
        folder: where the tables go; it must exist.
        seed: of the dataset; part of all tokens.
    """

    def __init__(self, folder: Path, seed: int):
        self._seed = seed
        self._files = {
            name: open(folder / f'{name}.json', 'w', encoding='utf-8')  # noqa: SIM115
            for name in TABLES
        }
        self._empty = set(TABLES)
        self._logs: list[str] = []
        for name in CATEGORIES:
            self._row('category', token=self._token('category', name), name=name, description='')
        for name in ATTRIBUTES:
            self._row('attribute', token=self._token('attribute', name), name=name, description='')
        for i, level in enumerate(VISIBILITIES):
            low, high = level[1:].split('-')
            self._row(
                'visibility',
                token=str(i + 1),
                level=level,
                description=f'between {low} and {high} % of the object are visible to the LiDAR',
            )
        for channel in ('LIDAR_TOP', *CAMERAS):
            modality = 'lidar' if channel == 'LIDAR_TOP' else 'camera'
            self._row(
                'sensor', token=self._token('sensor', channel), channel=channel, modality=modality
            )

    def _token(self, *parts) -> str:
        return token(self._seed, *parts)

    def _row(self, table: str, **fields) -> None:
        file = self._files[table]
        file.write('[\n' if table in self._empty else ',\n')
        self._empty.discard(table)
        file.write(json.dumps(fields))

    def add_scene(
        self,
        number: int,
        description: str,
        location: str,
        mount: tuple[list[float], list[float]],
        records: list[dict],
    ) -> None:
        """Add one scene.

        Args:
            mount: LIDAR_TOP in the ego frame: translation [3] m, quaternion [4].
            records: one per keyframe, in order: `sweeps` [{timestamp us, filename, translation,
                rotation}], the keyframe last; `boxes` [{actor, category, attribute, center,
                size [l, w, h], yaw, num_points, visibility}].
        """
        name = scene_name(number)
        log = self._token('log', name)
        self._logs.append(log)
        self._row(
            'log',
            token=log,
            logfile=f'sim-{name}',
            vehicle='sim',
            date_captured='2026-01-01',
            location=location,
        )
        sensors = self._calibrate_all(name, mount)
        samples = self._add_samples(name, description, log, records)
        sweeps = [
            (samples[k], sweep, sweep is record['sweeps'][-1])
            for k, record in enumerate(records)
            for sweep in record['sweeps']
        ]
        self._add_stream(name, 'LIDAR_TOP', sensors['LIDAR_TOP'], sweeps, 'pcd', 0, 0)
        for channel in CAMERAS:
            frames = []
            for sample, sweep, is_key in sweeps:
                if is_key:
                    file = f'sim-{name}__{channel}__{sweep["timestamp"]}.jpg'
                    frame = {**sweep, 'filename': f'samples/{channel}/{file}'}
                    frames.append((sample, frame, True))
            self._add_stream(name, channel, sensors[channel], frames, 'jpg', 900, 1600)
        self._annotate(name, samples, records)

    def _add_samples(self, name: str, description: str, log: str, records: list[dict]) -> list[str]:
        """Add the scene and a sample per keyframe; returns the samples' tokens."""
        samples = [self._token('sample', name, k) for k in range(len(records))]
        scene = self._token('scene', name)
        self._row(
            'scene',
            token=scene,
            log_token=log,
            nbr_samples=len(records),
            first_sample_token=samples[0],
            last_sample_token=samples[-1],
            name=name,
            description=description,
        )
        for k, record in enumerate(records):
            self._row(
                'sample',
                token=samples[k],
                timestamp=record['sweeps'][-1]['timestamp'],
                prev=samples[k - 1] if k else '',
                next=samples[k + 1] if k + 1 < len(samples) else '',
                scene_token=scene,
            )
        return samples

    def _calibrate_all(self, name: str, mount: tuple[list[float], list[float]]) -> dict[str, str]:
        """Add the calibration of every sensor of a scene; returns {channel: token}."""
        sensors = {'LIDAR_TOP': self._calibrate(name, 'LIDAR_TOP', *mount, [])}
        for channel, (yaw, place) in CAMERAS.items():
            cos, sin = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
            # x right, y down, z forward
            looking = np.array([[sin, 0.0, cos], [-cos, 0.0, sin], [0.0, -1.0, 0.0]])
            rotation = quaternion(looking)
            sensors[channel] = self._calibrate(name, channel, list(place), rotation, INTRINSIC)
        return sensors

    def _calibrate(
        self,
        name: str,
        channel: str,
        translation: list[float],
        rotation: list[float],
        intrinsic: list[list[float]],
    ) -> str:
        key = self._token('calibrated_sensor', name, channel)
        self._row(
            'calibrated_sensor',
            token=key,
            sensor_token=self._token('sensor', channel),
            translation=translation,
            rotation=rotation,
            camera_intrinsic=intrinsic,
        )
        return key

    def _add_stream(
        self,
        name: str,
        channel: str,
        sensor: str,
        frames: list[tuple[str, dict, bool]],
        fileformat: str,
        height: int,
        width: int,
    ) -> None:
        """Add the chained sample data of one sensor; frames: (sample token, sweep, is keyframe)."""
        tokens = [self._token('sample_data', name, channel, i) for i in range(len(frames))]
        for i, (sample, frame, is_key) in enumerate(frames):
            self._row(
                'ego_pose',
                token=tokens[i],
                timestamp=frame['timestamp'],
                rotation=frame['rotation'],
                translation=frame['translation'],
            )
            self._row(
                'sample_data',
                token=tokens[i],
                sample_token=sample,
                ego_pose_token=tokens[i],
                calibrated_sensor_token=sensor,
                timestamp=frame['timestamp'],
                fileformat=fileformat,
                is_key_frame=is_key,
                height=height,
                width=width,
                filename=frame['filename'],
                prev=tokens[i - 1] if i else '',
                next=tokens[i + 1] if i + 1 < len(tokens) else '',
            )

    def _annotate(self, name: str, samples: list[str], records: list[dict]) -> None:
        """Add an instance with its chained annotations for every actor that was seen."""
        tracks: dict[int, list[tuple[int, dict]]] = {}
        for k, record in enumerate(records):
            for box in record['boxes']:
                tracks.setdefault(box['actor'], []).append((k, box))
        for actor, track in sorted(tracks.items()):
            visible = _visible_part(track)
            if visible:
                self._add_track(name, actor, visible, samples)

    def _add_track(
        self, name: str, actor: int, track: list[tuple[int, dict]], samples: list[str]
    ) -> None:
        """Add one instance; track: (number of the keyframe, box)."""
        instance = self._token('instance', name, actor)
        tokens = [self._token('sample_annotation', name, actor, k) for k, _ in track]
        self._row(
            'instance',
            token=instance,
            category_token=self._token('category', track[0][1]['category']),
            nbr_annotations=len(track),
            first_annotation_token=tokens[0],
            last_annotation_token=tokens[-1],
        )
        for i, (k, box) in enumerate(track):
            attribute = box['attribute']
            length, width, height = box['size']
            self._row(
                'sample_annotation',
                token=tokens[i],
                sample_token=samples[k],
                instance_token=instance,
                visibility_token=visibility_token(box['visibility']),
                attribute_tokens=[self._token('attribute', attribute)] if attribute else [],
                translation=box['center'],
                size=[width, length, height],
                rotation=yaw_quaternion(box['yaw']),
                prev=tokens[i - 1] if i else '',
                next=tokens[i + 1] if i + 1 < len(tokens) else '',
                num_lidar_pts=box['num_points'],
                num_radar_pts=0,
            )

    def close(self, map_filename: str) -> None:
        """Add the map record that covers every log, and finish the files.

        Args:
            map_filename: of the map's picture, relative to the dataset's root.
        """
        self._row(
            'map',
            category='semantic_prior',
            token=self._token('map'),
            filename=map_filename,
            log_tokens=self._logs,
        )
        for name, file in self._files.items():
            file.write('[]\n' if name in self._empty else '\n]\n')
            file.close()


def _visible_part(track: list[tuple[int, dict]]) -> list[tuple[int, dict]]:
    """What annotators label of a track: from the first frame with a return to the last.

    Frames without a return count where at least 30 % of the box is visible.
    """
    seen = [i for i, (_, box) in enumerate(track) if box['num_points']]
    if not seen:
        return []
    return [
        (k, box)
        for k, box in track[seen[0] : seen[-1] + 1]
        if box['num_points'] or box['visibility'] >= 0.3
    ]


def blank_png() -> bytes:
    """A gray PNG of one pixel: the devkit wants a map picture to exist, and nothing opens it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    header = struct.pack('>IIBBBBB', 1, 1, 8, 0, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'IDAT', zlib.compress(b'\0\x80'))
        + chunk(b'IEND', b'')
    )
