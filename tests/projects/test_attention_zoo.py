"""Every rival against one dense masked softmax (or its own equation), in fp64, outputs and every gradient."""
import pytest
import torch

import stratified3d.plugin  # noqa: F401  (makes projects importable)
from projects.attention_zoo import OTHER, SAME, varlen
from projects.attention_zoo import sampled as sampled_module
from projects.attention_zoo.flex import FlexAttention
from projects.attention_zoo.varlen import VarlenAttention
from stratified3d.layers.attention import StratifiedAttention, arrange_windows
from stratified3d.ops import apply_rotary, rotary_angles
from stratified3d.testing import TOLERANCES, random_coords, relative_error

SHAPE = (6, 11, 13)
WINDOW = (4, 5, 6)
CLOUDS = {'plain': (90, 60), 'no_voxel': (0, ), 'one_voxel': (1, ), 'empty_between': (60, 0, 33),
          'empty_ends': (0, 57, 0), 'dense': (220, )}
HEADS, WIDTH = 3, 12
OTHER_BY_NAME = {kind.__name__: kind for kind in OTHER}


def setting(cloud, shift=(0, 0, 0), rotary=True):
    sizes = CLOUDS[cloud]
    coords = random_coords(sizes, SHAPE)
    grid = arrange_windows(coords, coords[:, [3, 2, 1]].double() / 4, WINDOW, shift, batch_size=len(sizes),
                           spatial_shape=SHAPE, head_dim=WIDTH if rotary else None)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(len(coords), HEADS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
               for _ in range(3))
    return grid, q, k, v


def dense(q, k, v, seen):
    """softmax over the keys that are seen: seen [N, K] or [H, N, K]."""
    logits = torch.einsum('ihd,jhd->hij', q, k) * q.shape[-1]**-0.5
    return torch.einsum('hij,jhd->ihd', logits.masked_fill(~seen, -torch.inf).softmax(-1), v)


def same(values):
    return values[:, None] == values[None, :] if values.dim() == 1 else (values[:, None] == values[None]).all(-1)


def windows(grid):
    """[N, 4] (batch, z, y, x) of the window of every row, by the definition."""
    shape, shift = torch.tensor(grid.window_shape), torch.tensor(grid.shift)
    return torch.cat([grid.coords[:, :1], (grid.coords[:, 1:] + shift) // shape], 1).long()


def compare(out, truth, inputs, tolerance=1e-11):
    """Outputs and the gradient of every input."""
    assert out.shape == truth.shape and relative_error(out, truth) < tolerance
    if not out.requires_grad:  # FlexAttention, on a CPU
        return
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    grads = [torch.autograd.grad(o, inputs, weight, allow_unused=True, retain_graph=True) for o in (out, truth)]
    for a, b, x in zip(*grads, inputs):
        a, b = (torch.zeros_like(x) if g is None else g for g in (a, b))
        assert relative_error(a, b) < tolerance


def settings_of(kinds):
    return [pytest.param(kind, settings, id=f'{kind.__name__}-{i}') for kind in kinds
            for i, settings in enumerate([{}, *kind.tried])]


def make(kind, block=0, rotary=True, **settings):
    torch.manual_seed(0)
    if kind is FlexAttention:
        settings['compiled'] = False  # eagerly: compiling takes longer than all other tests together
    if issubclass(kind, StratifiedAttention):
        return kind(HEADS * WIDTH, HEADS, num_strata=5, use_rotary=rotary, **settings).double()
    return kind(HEADS * WIDTH, HEADS, rotary, block, WINDOW, **settings).double()


@pytest.fixture
def varlen_on_a_cpu(monkeypatch):
    """torch's kernel runs on a GPU only: here the same two functions by the equation, sequence after sequence."""

    def parts(where, lse=None):
        for a, b, c, d in zip(*(x.tolist() for o in where[:2] for x in (o[:-1], o[1:]))):
            if a < b:
                yield slice(a, b), slice(c, d)

    def forward(q, k, v, where, scale):
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:2]).T.contiguous()
        for rows, keys in parts(where):
            logits = torch.einsum('ihd,jhd->hij', q[rows], k[keys]) * scale
            lse[:, rows] = logits.logsumexp(-1)
            out[rows] = torch.einsum('hij,jhd->ihd', logits.softmax(-1), v[keys])
        return out, lse

    def backward(grad, q, k, v, out, lse, where, scale):
        grads = [torch.zeros_like(x) for x in (q, k, v)]
        for rows, keys in parts(where):
            p = (torch.einsum('ihd,jhd->hij', q[rows], k[keys]) * scale - lse[:, rows].unsqueeze(-1)).exp()
            ds = p * (torch.einsum('ihd,jhd->hij', grad[rows], v[keys])
                      - (grad[rows] * out[rows]).sum(-1).T.unsqueeze(-1)) * scale
            for total, at, part in zip(grads, (rows, keys, keys), (
                    torch.einsum('hij,jhd->ihd', ds, k[keys]), torch.einsum('hij,ihd->jhd', ds, q[rows]),
                    torch.einsum('hij,ihd->jhd', p, grad[rows]))):
                total[at] += part
        return tuple(grads)

    monkeypatch.setattr(varlen, '_forward', forward)
    monkeypatch.setattr(varlen, '_backward', backward)
    monkeypatch.setattr(VarlenAttention, 'unsupported_reason', lambda self, q: None)


@pytest.mark.parametrize('cloud', CLOUDS)
@pytest.mark.parametrize('kind, settings', settings_of(SAME))
@pytest.mark.parametrize('absent', [False, True])
def test_joint_rivals_equal_one_dense_softmax_over_window_and_strata(kind, settings, cloud, absent,
                                                                             varlen_on_a_cpu):
    grid, q, k, v = setting(cloud, shift=(0, 2, 3))
    batch = len(grid.plan.batch_offsets) - 1
    generator = torch.Generator().manual_seed(2)
    strata = [torch.randn(batch, 5, HEADS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2)]
    bias = torch.randn(batch, 5, HEADS, generator=generator, dtype=torch.float64)
    if absent:
        bias[0, 2:] = -torch.inf
    strata = [x.requires_grad_() for x in (*strata, bias)]
    if kind is FlexAttention:  # it has no backward pass on a CPU
        q, k, v, *strata = (x.detach() for x in (q, k, v, *strata))
    rival = make(kind, **settings)
    near = same(windows(grid))
    far = grid.plan.sample[:, None] == torch.arange(batch).repeat_interleave(5)
    keys, values = (torch.cat([x, s.flatten(0, 1)]) for x, s in ((k, strata[0]), (v, strata[1])))
    logits = torch.einsum('ihd,jhd->ijh', q, keys) * WIDTH**-0.5
    logits = logits + torch.cat([bias.new_zeros(len(q), HEADS), strata[2].flatten(0, 1)])
    weights = logits.masked_fill(~torch.cat([near, far], 1)[..., None], -torch.inf).softmax(1)
    compare(rival.attend(q, k, v, grid, *strata), torch.einsum('ijh,jhd->ihd', weights, values), [q, k, v, *strata])
    compare(rival.attend(q, k, v, grid), dense(q, k, v, near), [q, k, v])


def full(grid, rival):
    return same(grid.coords[:, 0])


def sets(grid, rival):
    """Set of every row by DSVT's equation, window by window."""
    number, count = torch.full((len(grid.coords), ), -1), 0
    for window in windows(grid).unique(dim=0):
        rows = (windows(grid) == window).all(1).nonzero().squeeze(1)
        z, y, x = grid.coords[rows, 1:].long().unbind(1)
        key = (x * 100 + y) * 100 + z if rival.block % 2 == 0 else (y * 100 + x) * 100 + z
        rows = rows[key.argsort()]
        n, size = len(rows), rival.set_size
        s = -(-n // size)
        for j in range(s):
            for place in range(size):
                number[rows[(j * size + place) * n // (s * size)]] = count
            count += 1
    assert (number >= 0).all()
    return same(number)


def equal_groups(grid, rival):
    seen = torch.zeros(len(grid.coords), len(grid.coords), dtype=torch.bool)
    size = rival.group_size
    for b in grid.coords[:, 0].unique():
        rows = (grid.coords[:, 0] == b).nonzero().squeeze(1)  # by window
        z, y, x = grid.coords[rows, 1:].long().unbind(1)
        key = (x * 100 + y) * 100 + z if rival.block % 2 == 0 else (y * 100 + x) * 100 + z
        rows = rows[(grid.plan.window_start[rows].long() * 1000000 + key).argsort()]
        for start in range(0, len(rows), size):
            keys = rows[max(0, min(start, len(rows) - size)):start + size]
            seen[rows[start:start + size, None], keys] = True
    return seen


def planes(grid, rival):
    place = (grid.coords[:, 1:] + torch.tensor(grid.shift)) % torch.tensor(grid.window_shape)
    third = [same(windows(grid)) & same(place[:, axis] // rival.thickness) for axis in range(3)]
    return torch.stack(third)  # one head each


@pytest.mark.parametrize('cloud', CLOUDS)
@pytest.mark.parametrize('name, seen', [('FullAttention', full), ('SetAttention', sets),
                                        ('EqualGroupAttention', equal_groups), ('PlaneAttention', planes)])
def test_masked_rivals_equal_one_dense_softmax(name, seen, cloud):
    kind = OTHER_BY_NAME[name]
    small = dict(FullAttention=[dict(queries_at_once=7)], SetAttention=[dict(set_size=1), dict(set_size=5)],
                 EqualGroupAttention=[dict(group_size=1), dict(group_size=7)], PlaneAttention=[])[name]
    for settings in [{}, *kind.tried, *small]:
        for block, shift in enumerate([(0, 0, 0), (1, 2, 3)]):
            grid, q, k, v = setting(cloud, shift)
            rival = make(kind, block, **settings)
            compare(rival.attend(q, k, v, grid), dense(q, k, v, seen(grid, rival)), [q, k, v])


@pytest.mark.parametrize('cloud', CLOUDS)
def test_linear_window_attention_equals_its_dense_weights(cloud):
    grid, q, k, v = setting(cloud, shift=(0, 2, 3))
    weights = torch.einsum('ihd,jhd->hij', q.relu(), k.relu()).masked_fill(~same(windows(grid)), 0)
    total = weights.sum(-1, keepdim=True)
    truth = torch.einsum('hij,jhd->ihd', weights / total.masked_fill(total == 0, 1), v)
    for settings in [{}, *OTHER_BY_NAME['LinearWindowAttention'].tried]:
        compare(make(OTHER_BY_NAME['LinearWindowAttention'], **settings).attend(q, k, v, grid), truth, [q, k, v])


@pytest.mark.parametrize('cloud', CLOUDS)
def test_performer_equals_its_dense_weights(cloud):
    grid, q, k, v = setting(cloud)
    rival = make(OTHER_BY_NAME['PerformerAttention'], num_features=30)

    def features(x):
        x = x * WIDTH**-0.25
        return (torch.einsum('nhd,fd->nhf', x, rival.features) - x.square().sum(-1, keepdim=True) / 2).exp()

    weights = torch.einsum('ihf,jhf->hij', features(q), features(k)).masked_fill(~full(grid, rival), 0)
    truth = torch.einsum('hij,jhd->ihd', weights / weights.sum(-1, keepdim=True), v)
    compare(rival.attend(q, k, v, grid), truth, [q, k, v])


def test_performer_features_are_orthogonal_and_approach_softmax():
    rival = make(OTHER_BY_NAME['PerformerAttention'], num_features=24)
    block = torch.nn.functional.normalize(rival.features[:WIDTH], dim=1)
    assert relative_error(block @ block.T, torch.eye(WIDTH, dtype=block.dtype)) < 1e-6
    grid, q, k, v = setting('plain')
    q, k = q * 0.5, k * 0.5
    truth, errors = dense(q, k, v, full(grid, rival)), []
    for count in (24, 2400):
        errors.append(float((make(type(rival), num_features=count).attend(q, k, v, grid) - truth).square().mean()))
    assert errors[1] < 0.1 * errors[0] and errors[1] < 0.02 * float(truth.square().mean())


@pytest.mark.parametrize('cloud', CLOUDS)
@pytest.mark.parametrize('rotary', [True, False])
def test_spatial_reduction_equals_attention_to_the_cells(cloud, rotary):
    grid, q, k, v = setting(cloud, rotary=rotary)
    rival = make(OTHER_BY_NAME['SpatialReductionAttention'], rotary=rotary, reduction=3)
    cells, member = torch.cat([grid.coords[:, :1], grid.coords[:, 1:] // 3], 1).unique(dim=0, return_inverse=True)
    mean = (member == torch.arange(len(cells))[:, None]).double()
    mean = mean / mean.sum(1, keepdim=True)
    keys, values = (reduce(mean @ x.flatten(1)).view(-1, HEADS, WIDTH)
                    for reduce, x in ((rival.reduce_k, k), (rival.reduce_v, v)))
    queries = q
    if rotary:
        queries = apply_rotary(q, *grid.rotary)
        keys = apply_rotary(keys, *rotary_angles((mean @ grid.positions).float(), WIDTH))
    truth = dense(queries, keys, values, grid.coords[:, :1] == cells[:, 0])
    # the angles are computed in fp32
    compare(rival.attend(q, k, v, grid), truth, [q, k, v, *rival.reduce_k.parameters(), *rival.reduce_v.parameters()],
            1e-6 if rotary else 1e-11)


@pytest.mark.parametrize('cloud', CLOUDS)
@pytest.mark.parametrize('length', [7, 60, 400])
def test_linformer_equals_attention_to_projected_rows(cloud, length):
    grid, q, k, v = setting(cloud)
    rival = make(OTHER_BY_NAME['LinformerAttention'], rank=5, length=length)
    keys, values = [], []
    for start, end in zip(grid.plan.batch_offsets.tolist(), grid.plan.batch_offsets.tolist()[1:]):
        n = end - start
        # rows of column c are those from floor(c n / length) on: nothing but the mean over them
        columns = [range(start + c * n // length, start + (c + 1) * n // length) for c in range(length)]
        for out, x in ((keys, k), (values, v)):
            means = torch.stack([x[list(c)].mean(0) if len(c) else x.new_zeros(HEADS, WIDTH) for c in columns])
            out.append(torch.einsum('rc,chd->rhd', rival.projection, means))
    owner = torch.arange(len(keys)).repeat_interleave(5)
    truth = dense(q, torch.cat(keys), torch.cat(values), grid.plan.sample[:, None] == owner)
    compare(rival.attend(q, k, v, grid), truth, [q, k, v, rival.projection])


def sampled(grid, rival):
    """Own window, and rows of the sampled part in the doubled window."""
    doubled = torch.cat([grid.coords[:, :1], (grid.coords[:, 1:] + torch.tensor(grid.shift)) // (
        2 * torch.tensor(grid.window_shape))], 1)
    part = torch.zeros(len(grid.coords), dtype=torch.bool)
    for b in grid.coords[:, 0].unique():
        rows = (grid.coords[:, 0] == b).nonzero().squeeze(1)
        count = -(-len(rows) // round(1 / rival.part))
        if rival.sampling == 'stride':
            chosen = [i * len(rows) // count for i in range(count)]
        else:
            chosen = [0]
            while len(chosen) < count:
                apart = grid.positions[rows, None] - grid.positions[rows][chosen]
                distance = apart.square().sum(-1).amin(1)  # exact: positions are quarters
                chosen.append(int(distance.argmax()))
            assert len(set(chosen)) == count
        part[rows[chosen]] = True
    return same(windows(grid)) | (same(doubled) & part)


@pytest.mark.parametrize('cloud', CLOUDS)
@pytest.mark.parametrize('settings', [dict(), *OTHER_BY_NAME['SampledWindowAttention'].tried])
def test_sampled_windows_equal_one_dense_softmax_with_relative_positions(cloud, settings):
    grid, q, k, v = setting(cloud, shift=(0, 2, 3))
    rival = make(OTHER_BY_NAME['SampledWindowAttention'], **settings)
    tables = list(rival.tables) if rival.contextual else []
    query, value = q * WIDTH**-0.5, v[None].expand(len(q), -1, -1, -1)
    logits = torch.einsum('ihd,jhd->hij', query, k)
    for axis, table in enumerate(tables):
        table.data.mul_(20)
        offset = grid.coords[:, None, 1 + axis] - grid.coords[None, :, 1 + axis] + 2 * WINDOW[axis] - 1
        at = table[:, offset.long().clamp(0, 4 * WINDOW[axis] - 2)]  # [3, N, N, H, D]
        logits = logits + torch.einsum('ihd,ijhd->hij', query, at[0]) + torch.einsum('jhd,ijhd->hij', k, at[1])
        value = value + at[2]
    weights = logits.masked_fill(~sampled(grid, rival), -torch.inf).softmax(-1)
    truth = torch.einsum('hij,ijhd->ihd', weights, value)
    compare(rival.attend(q, k, v, grid), truth, [q, k, v, *tables])


def test_long_logits_are_taken_in_pieces(monkeypatch):
    grid, q, k, v = setting('plain')
    rival = make(OTHER_BY_NAME['SampledWindowAttention'])
    truth = rival.attend(q, k, v, grid)
    monkeypatch.setattr(sampled_module, '_LOGITS', 1000)
    compare(rival.attend(q, k, v, grid), truth, [q, k, v])


@pytest.mark.parametrize('kind', SAME + OTHER)
def test_samples_do_not_see_each_other(kind, varlen_on_a_cpu):
    grid, q, k, v = setting('plain')
    rival = make(kind)
    q, k, v = (x.detach() for x in (q, k, v))
    first = grid.plan.sample == 0
    out = rival.attend(q, k, v, grid)
    assert torch.equal(rival.attend(q, *(x.masked_fill(first[:, None, None], 7.0) for x in (k, v)), grid)[~first],
                       out[~first])


def test_blocks_of_one_grid_share_what_they_arrange():
    grid, q, k, v = setting('plain')
    kind = OTHER_BY_NAME['SetAttention']
    plans = [make(kind, block, **settings).arranged(grid) for block, settings in (
        (0, {}), (2, {}), (1, {}), (0, dict(set_size=9)))]
    assert plans[0] is plans[1] and len({id(p) for p in plans}) == 3


def test_padding_is_counted():
    grid, q, k, v = setting('plain')
    sizes = torch.unique(windows(grid), dim=0, return_counts=True)[1].double()
    one = float((sizes**2).sum() / (len(sizes) * sizes.max()**2))
    assert abs(make(SAME[0]).arranged(grid).padding - (1 - one)) < 1e-12
    assert make(OTHER_BY_NAME['FullAttention']).arranged(grid).padding == 0
    for kind in ('SetAttention', 'EqualGroupAttention', 'SampledWindowAttention', 'LinearWindowAttention'):
        assert 0 < make(OTHER_BY_NAME[kind]).arranged(grid).padding < 1
    sets = make(OTHER_BY_NAME['SetAttention'], set_size=1).arranged(grid)
    assert sets.padding == 0


@pytest.mark.parametrize('cloud', [c for c in CLOUDS if c != 'no_voxel'])
@pytest.mark.parametrize('size', [8, 32])
def test_the_block_mask_holds_exactly_the_blocks_with_a_pair(cloud, size):
    grid, *_ = setting(cloud, shift=(0, 2, 3))
    mask = make(FlexAttention, block_size=size).arranged(grid, 5)
    n, batch = len(grid.coords), len(grid.plan.batch_offsets) - 1
    far = grid.plan.sample[:, None] == torch.arange(batch).repeat_interleave(5)
    seen = torch.cat([same(windows(grid)), far], 1)
    blocks = torch.nn.functional.pad(seen, (0, -seen.shape[1] % size, 0, -n % size))
    blocks = blocks.unflatten(1, (-1, size)).unflatten(0, (-1, size)).any(3).any(1)
    kept = mask.to_dense()[0, 0].bool()
    assert kept.shape == blocks.shape and (kept | ~blocks).all()  # none is left out
    # windows of a row of blocks are one run: a block in between may hold no pair of its own
    assert kept.sum() <= 1.3 * blocks.sum()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU: these two libraries compute gradients on CUDA only')
@pytest.mark.parametrize('kind', [VarlenAttention, FlexAttention])
def test_libraries_of_the_gpu_equal_the_reference_there(kind):
    coords = random_coords((700, 0, 300), (6, 40, 40)).cuda()
    grid = arrange_windows(coords, coords[:, [3, 2, 1]].float(), (6, 8, 8), (0, 4, 4), batch_size=3,
                           spatial_shape=(6, 40, 40), head_dim=32)
    torch.manual_seed(0)
    dtype = torch.float16 if kind is VarlenAttention else torch.float32
    inputs = [torch.randn(1000, 2, 32, device='cuda', dtype=dtype).requires_grad_() for _ in range(3)]
    inputs += [torch.randn(3, 64, 2, 32, device='cuda', dtype=dtype).requires_grad_() for _ in range(2)]
    inputs.append(torch.randn(3, 64, 2, device='cuda').requires_grad_())
    for settings in ({}, *kind.tried):
        results = []
        for module, wide in ((kind(64, 2, num_strata=64, **settings), dtype),
                             (StratifiedAttention(64, 2, 64, backend='reference'), torch.float32)):
            x = [t.detach().to(wide).requires_grad_() for t in inputs[:5]] + inputs[5:]
            out = module.attend(*x[:3], grid, *x[3:])
            results.append([out, *torch.autograd.grad(out, x, torch.ones_like(out) / 7)])
        for a, b in zip(*results):
            assert relative_error(a, b) < TOLERANCES[dtype] + 1e-3
