"""What the code computes, as numbers and hashes, to compare before and after a change that must not
change it.

    python tests/fingerprint.py before.json              write it down (8 minutes on two cores)
    python tests/fingerprint.py after.json --against before.json

`--only ops models data score` takes some of the parts. Numbers are compared to 1e-6, hashes to the
byte; both hold between runs on one machine, because sums and exponentials differ in their last
digits from processor to processor.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # configs name projects.attention_zoo
# parameters that were renamed, as the first fingerprint knew them
FORMER_NAMES = {
    'encoder.input_proj': 'encoder.lift',
    'encoder.downsamples': 'encoder.downs',
    'box_branches.center': 'box_branches.centre',
}
TOLERANCE = 1e-6


def summarize(x: torch.Tensor | None) -> list[float]:
    """Shape-free digest of a tensor: mean, root mean square and a projection on fixed random
    numbers."""
    if x is None or not x.numel():
        return []
    x = x.detach().double().flatten()
    noise = torch.randn(
        len(x), generator=torch.Generator().manual_seed(len(x)), dtype=torch.float64
    )
    return [x.mean().item(), x.square().mean().sqrt().item(), (x * noise).mean().item()]


# ----------------------------------------------------------------------------------------------
# attention


def attention_numbers() -> dict[str, list[float]]:
    from stratified3d.ops import collect_strata, plan_windows, read_strata, stratified_attention

    torch.manual_seed(0)
    coords = (
        torch.stack([torch.randint(0, high, (700,)) for high in (2, 4, 40, 40)], 1)
        .unique(dim=0)
        .int()
    )
    plan = plan_windows(coords, (4, 6, 6), (0, 3, 3), batch_size=2)
    rows, tokens = (len(coords), 4, 20), (2, 9, 4, 20)
    numbers = {}
    for backend, dtype in (
        ('reference', torch.float64),
        ('sdpa', torch.float64),
        ('sdpa', torch.float32),
    ):
        torch.manual_seed(1)
        tensors = [
            torch.randn(*shape, dtype=dtype, requires_grad=True)
            for shape in [rows] * 3 + [tokens] * 3
        ]
        q, k, v, strata_q, strata_k, strata_v = tensors
        bias = torch.randn(2, 9, 4, requires_grad=True)
        results = dict(
            attention=stratified_attention(
                q, k, v, plan, strata_k, strata_v, strata_bias=bias, backend=backend
            ),
            windows=stratified_attention(q, k, v, plan, backend=backend),
            collect=collect_strata(strata_q, k, v, plan.batch_offsets, backend=backend),
            read=read_strata(
                q, strata_k, strata_v, plan.batch_offsets, strata_bias=bias, backend=backend
            ),
        )
        for name, out in results.items():
            grads = torch.autograd.grad(out.square().sum(), [*tensors, bias], allow_unused=True)
            key = f'{name}/{backend}/{str(dtype)[6:]}'
            numbers[key] = [
                *summarize(out),
                *(value for grad in grads for value in summarize(grad)),
            ]
    return numbers


# ----------------------------------------------------------------------------------------------
# detectors


def fill(model: torch.nn.Module) -> None:
    """Weights that depend on the names and shapes of the parameters alone."""
    for name, parameter in model.named_parameters():
        for now, former in FORMER_NAMES.items():
            name = name.replace(now, former)
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.dim() > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif name.endswith('weight'):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.1 * noise)


def simulated_frame(work: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Points [P, 5] (x, y, z, intensity, dt) and boxes [K, 9] of one simulated keyframe."""
    run(
        ROOT / 'tools/simulate.py',
        'frame',
        '--scenes',
        '1+1',
        '--keyframes',
        2,
        '--workers',
        1,
        cwd=work,
    )
    run(ROOT / 'tools/create_data.py', 'frame', '--no-database', cwd=work)
    info = pickle.loads((work / 'frame/nuscenes_infos_val.pkl').read_bytes())['data_list'][0]
    file = work / 'frame/samples/LIDAR_TOP' / Path(info['lidar_points']['lidar_path']).name
    points = torch.from_numpy(np.fromfile(file, np.float32).reshape(-1, 5))
    points[:, 4] = 0
    rows = [[*instance['bbox_3d'], *instance['velocity']] for instance in info['instances']]
    boxes = torch.tensor(rows).nan_to_num(0)
    boxes[:, 2] -= boxes[:, 5] / 2
    return points, boxes


def detector_numbers(work: Path) -> dict[str, list[float]]:
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
    from mmengine.config import Config
    from mmengine.structures import InstanceData

    from stratified3d.apis import init_detector

    points, boxes = simulated_frame(work)
    numbers = {}
    configs = [
        *sorted((ROOT / 'configs/stratified').glob('*.py')),
        ROOT / 'projects/quickstart/configs/quickstart.py',
        ROOT / 'projects/attention_zoo/configs/attention_zoo.py',
        ROOT / 'projects/own_data/configs/own_data.py',
    ]
    for path in configs:
        print(f'  {path.stem}', flush=True)
        torch.manual_seed(0)
        with quiet():
            model = init_detector(Config.fromfile(path), device='cpu')
        fill(model)
        columns = (
            model.voxel_encoder.in_channels if hasattr(model.voxel_encoder, 'in_channels') else 5
        )
        classes = len(model.class_names)
        size = 9 if 'waymo' not in path.stem and 'own_data' not in path.stem else 7
        truth = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes[:, :size], box_dim=size),
            labels_3d=torch.arange(len(boxes)) % classes,
        )
        sample = Det3DDataSample(
            metainfo=dict(box_type_3d=LiDARInstance3DBoxes), gt_instances_3d=truth
        )
        inputs = dict(points=[points[:, :columns].clone()])
        model.train()
        losses = model(inputs, [sample], mode='loss')
        sum(value for value in losses.values()).backward()
        numbers[f'{path.stem}/losses'] = [value.item() for _, value in sorted(losses.items())]
        norms = {
            name: parameter.grad.norm().item()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        for part in ('voxel_encoder', 'encoder', 'backbone', 'head'):
            numbers[f'{path.stem}/gradient norms of {part}'] = sorted(
                value for name, value in norms.items() if name.startswith(part)
            )
        model.eval()
        with torch.no_grad():
            found = model(inputs, [sample], mode='predict')[0].pred_instances_3d
        numbers[f'{path.stem}/predictions'] = [
            float(len(found)),
            *summarize(found.scores_3d),
            *summarize(found.bboxes_3d.tensor),
            *summarize(found.labels_3d),
        ]
    return numbers


# ----------------------------------------------------------------------------------------------
# bytes


def run(*words: object, cwd: Path) -> str:
    command = [sys.executable, '-W', 'ignore', *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f'{" ".join(command)} ended with status {done.returncode}\n{done.stdout}{done.stderr}'
        )
    return done.stdout


def hashes(folder: Path) -> dict[str, str]:
    """File -> hash; a folder of many files has one hash for all."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    single = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    grouped: dict[str, list[str]] = {}
    for name, digest in single.items():
        grouped.setdefault(name if name.count('/') < 2 else str(Path(name).parent), []).append(
            f'{digest}'
        )
    return {
        name: hashlib.sha256(''.join(parts).encode()).hexdigest()[:16]
        for name, parts in grouped.items()
    }


def data_hashes(work: Path) -> dict[str, str]:
    tools = ROOT / 'tools'
    run(
        tools / 'simulate.py',
        'nuscenes',
        '--scenes',
        '1+1',
        '--keyframes',
        3,
        '--workers',
        1,
        cwd=work,
    )
    simulated = hashes(work / 'nuscenes')
    run(tools / 'create_data.py', 'nuscenes', '--sweeps', 4, cwd=work)
    run(
        tools / 'simulate.py',
        'waymo',
        '--format',
        'waymo',
        '--scenes',
        '2+1',
        '--keyframes',
        2,
        cwd=work,
    )
    run(tools / 'waymo_convert.py', 'waymo', 'converted', '--database-every', 1, cwd=work)
    frames = sorted((work / 'nuscenes/samples/LIDAR_TOP').glob('*.bin'))
    (work / 'raw').mkdir()
    table = ['frame,name,x,y,z,dx,dy,dz,yaw']
    for i, frame in enumerate(frames):
        shutil.copy(frame, work / f'raw/{i:06d}.bin')
        table += [
            f'{i:06d},{name},{8 + 3 * k},{k - 4},-0.9,{4 + k / 10},1.8,1.5,{k / 4}'
            for k, name in enumerate(('car', 'van', 'car'))
        ]
    (work / 'boxes.csv').write_text('\n'.join(table))
    run(
        tools / 'convert_custom.py',
        'raw',
        '--boxes',
        'boxes.csv',
        '--out',
        'custom',
        '--split',
        'train',
        '--load-dim',
        5,
        cwd=work,
    )
    after = {part: hashes(work / part) for part in ('nuscenes', 'waymo', 'converted', 'custom')}
    return {
        f'{part}/{name}': digest
        for part, files in dict(after, simulated=simulated).items()
        for name, digest in files.items()
    }


def quickstart_scores(work: Path) -> dict[str, list[float]]:
    """mAP, NDS and AP of each class of the released weights on the validation scenes of the
    quickstart."""
    tools, config = ROOT / 'tools', ROOT / 'projects/quickstart/configs/quickstart.py'
    run(tools / 'simulate.py', 'data/simulated', '--scenes', '8+2', '--keyframes', 20, cwd=work)
    run(tools / 'create_data.py', 'data/simulated', '--no-database', cwd=work)
    scores = {}
    for weights in sorted((ROOT / 'projects/quickstart').glob('*.safetensors')):
        out = work / weights.stem
        run(
            tools / 'test.py',
            config,
            weights,
            '--work-dir',
            out,
            '--cfg-options',
            f'val_evaluator.jsonfile_prefix={out}',
            f'test_evaluator.jsonfile_prefix={out}',
            cwd=work,
        )
        metrics = json.loads((out / 'pred_instances_3d/metrics_summary.json').read_text())
        scores[weights.stem] = [
            metrics['mean_ap'],
            metrics['nd_score'],
            *metrics['mean_dist_aps'].values(),
        ]
    return scores


# ----------------------------------------------------------------------------------------------
# comparison


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(None):
        yield


def differences(before: dict, after: dict) -> list[str]:
    found = [
        f'{name}: only {"before" if name in before else "after"}'
        for name in before.keys() ^ after.keys()
    ]
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        if isinstance(old, str) or len(old) != len(new):
            if old != new:
                found.append(f'{name}: {old} before, {new} after')
            continue
        gap = max((abs(a - b) / max(abs(a), 1.0) for a, b in zip(old, new)), default=0.0)
        if not gap <= TOLERANCE:
            found.append(f'{name}: differs by {gap:.1e}')
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, help='JSON file to write')
    parser.add_argument('--against', type=Path, help='JSON file of an earlier run to compare with')
    parser.add_argument(
        '--only',
        nargs='+',
        choices=('ops', 'models', 'data', 'score'),
        default=['ops', 'models', 'data', 'score'],
    )
    parser.add_argument(
        '--work',
        type=Path,
        default=Path('/tmp/stratified3d-fingerprint'),
        help='scratch folder; paths enter some files, so take the same one (default: %(default)s)',
    )
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    makers: dict[str, Callable[[], dict]] = {
        'ops': attention_numbers,
        'models': lambda: detector_numbers(args.work),
        'data': lambda: data_hashes(args.work),
        'score': lambda: quickstart_scores(args.work),
    }
    result: dict[str, dict] = {}
    for part in args.only:
        print(f'== {part}', flush=True)
        result[part] = makers[part]()
        args.out.write_text(json.dumps(result, indent=1))
    if args.against is None:
        return 0
    before = json.loads(args.against.read_text())
    found = [
        f'{part}: {line}' for part in args.only for line in differences(before[part], result[part])
    ]
    print(*found, sep='\n')
    print(f'{len(found)} differences')
    return bool(found)


if __name__ == '__main__':
    sys.exit(main())
