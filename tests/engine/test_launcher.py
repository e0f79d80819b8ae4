"""mmdet3d's `--launcher pytorch` without a GPU."""
import socket


def free_port():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


def test_two_processes_train_and_validate(start, losses, tmp_path):
    """In the environment that torchrun gives its processes."""
    place = dict(MASTER_ADDR='localhost', MASTER_PORT=str(free_port()), WORLD_SIZE='2')
    processes = [start(
        'train.py', tmp_path, '--launcher', 'pytorch', name=f'rank{rank}', environ=dict(
            place, RANK=str(rank), LOCAL_RANK=str(rank)),
        options=['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'model.head.sync_avg_factor=True'])
        for rank in range(2)]
    for process in processes:
        status, output = process.wait()
        assert status == 0, output[-5000:]
    assert list(losses(tmp_path)) == [1, 2]  # three frames, two processes
    assert (tmp_path / 'epoch_1.pth').is_file() and 'NuScenes metric' in processes[0].log.read_text()
