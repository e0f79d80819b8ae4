"""mmengine's Runner, safe to kill at any moment, and with errors that name what is wrong before
anything runs."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.dist import is_distributed, master_only
from mmengine.evaluator import Evaluator
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner
from torch import nn
from torch.utils.data import DataLoader

from stratified3d.checkpoints import check_fit, latest_checkpoint
from stratified3d.datasets.io.info_files import (
    check_dataset,
    check_files,
    info_paths,
    read_info_file,
)


@RUNNERS.register_module()
class StratifiedRunner(Runner):
    """mmengine's Runner for `runner_type = 'StratifiedRunner'` in a config; mmdet3d's own scripts
    then take it.

    - Checkpoints are written beside their place and moved there when whole; `--resume` finds the
      latest whole one.
    - Weights that do not fit are an error that lists them. In fine-tuning (`load_from`) the head
      may differ: what differs is listed in a warning and starts from random weights.
    - Datasets are looked at before training or testing: info file, first frame, order of the
      classes.
    - `--launcher pytorch` works without a GPU, over gloo.
    """

    def __init__(self, model: nn.Module | dict, work_dir: str, **settings):
        _check_writable(Path(work_dir))
        self._is_training = False
        super().__init__(model, work_dir, **settings)

    def train(self) -> nn.Module:
        """Train, see mmengine."""
        self._is_training = True
        return super().train()

    # data

    def build_dataloader(self, dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """Build a loader and look at its dataset.

        Raises:
            FileNotFoundError, ValueError: missing or damaged info file, points that are not there,
            other classes than
                the model's.
        """
        settings = dataloader['dataset'] if isinstance(dataloader, dict) else {}
        check_files(settings)
        try:
            loader = super().build_dataloader(dataloader, *args, **kwargs)
        except Exception:
            for path in info_paths(settings):
                read_info_file(path)  # says what is wrong with the file, if it is the file
            raise
        check_dataset(loader.dataset, self._class_names())
        return loader

    def build_evaluator(self, evaluator: Evaluator | dict | list) -> Evaluator:
        """Build the metrics, whose info file would be looked for only after the last frame."""
        for settings in evaluator if isinstance(evaluator, list) else [evaluator]:
            if isinstance(settings, dict):
                check_files(dict(ann_file=settings.get('ann_file')))
        return super().build_evaluator(evaluator)

    def _class_names(self) -> list[str] | None:
        head = getattr(self._bare_model(), 'head', None)
        return (
            [name for names in head.class_names for name in names]
            if hasattr(head, 'class_names')
            else None
        )

    def _bare_model(self) -> nn.Module:
        return self.model.module if is_model_wrapper(self.model) else self.model

    # checkpoints

    def load_or_resume(self) -> None:
        """Load what `load_from` and `resume` ask for; a run that left no checkpoint is begun
        anew."""
        if self._resume and self._load_from is None and not self._has_loaded:
            self._load_from = latest_checkpoint(self.work_dir)
            if self._load_from is None:
                self._resume = False
                self.logger.info(
                    f'{self.work_dir} holds no checkpoint: training starts from the beginning'
                )
        super().load_or_resume()

    def load_checkpoint(
        self, filename: str, map_location: str | Callable = 'cpu', *args, **kwargs
    ) -> dict:
        """Load weights that fit the model.

        Raises:
            ValueError: weights of another model, or nothing to resume from.
        """
        content = CheckpointLoader.load_checkpoint(filename, map_location)
        self.call_hook('after_load_checkpoint', checkpoint=content)
        if (
            self._is_training
            and self._resume
            and not {'meta', 'message_hub', 'optimizer'} <= content.keys()
        ):
            raise ValueError(
                f'{filename}: holds weights and no state of training, so there is nothing to resume; '
                f'--cfg-options load_from={filename} starts a new training from them'
            )
        state = {
            re.sub('^module[.]', '', name): value
            for name, value in content.get('state_dict', content).items()
        }
        is_tuning = self._is_training and not self._resume
        model = self._bare_model()
        classes = ((content.get('meta') or {}).get('dataset_meta') or {}).get('classes')
        misfit = check_fit(
            model,
            state,
            filename,
            None if is_tuning else classes,
            self._class_names(),
            optional='head.' if is_tuning else None,
        )
        if misfit:
            self.logger.warning(f'{misfit}: these parts of the head start from random weights')
            own = model.state_dict()
            state = {
                name: value
                for name, value in state.items()
                if name in own and own[name].shape == value.shape
            }
        model.load_state_dict(state, strict=not misfit)
        self._has_loaded = True
        self.logger.info(f'weights loaded from {filename}')
        return content

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            OSError: the disk is full or refuses.
        """
        if '://' in str(out_dir):  # a store whose uploads are atomic
            return super().save_checkpoint(out_dir, filename, *args, **kwargs)
        partial, path = Path(out_dir, f'{filename}.partial'), Path(out_dir, filename)
        try:
            super().save_checkpoint(out_dir, partial.name, *args, **kwargs)
            with partial.open('rb') as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            before = latest_checkpoint(out_dir)
            hint = f'--resume goes on from {before}' if before else 'this run has no checkpoint yet'
            raise OSError(
                f'{path}: the checkpoint could not be written ({os.strerror(error.errno or errno.EIO)}); '
                f'make room, then {hint}'
            ) from error

    # processes

    def setup_env(self, env_cfg: dict) -> None:
        """Join the other processes; without a GPU over gloo, where mmengine insists on a CUDA
        device."""
        if self._launcher == 'pytorch' and not torch.cuda.is_available() and not is_distributed():
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """DistributedDataParallel where there are several processes; on a CPU it must not be given
        a device."""
        if self.distributed and not torch.cuda.is_available() and not is_model_wrapper(model):
            model_wrapper_cfg = dict(
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False),
                **(model_wrapper_cfg or {}),
            ) | dict(device_ids=None)
        return super().wrap_model(model_wrapper_cfg, model)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f'{folder}: the work folder cannot be written ({os.strerror(error.errno)}); name another with '
            '--work-dir'
        ) from error
