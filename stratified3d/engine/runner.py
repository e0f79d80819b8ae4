"""mmengine's Runner, safe to kill at any moment, with errors before anything runs."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_distributed, master_only
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stratified3d.checkpoints import check_fit, latest_checkpoint
from stratified3d.commands import quiet_console
from stratified3d.datasets.io.info_files import (
    check_dataset,
    check_files,
    info_paths,
    read_info_file,
)
from stratified3d.engine.schedule import fit_schedule
from stratified3d.resumable import PARTIAL


@RUNNERS.register_module()
class StratifiedRunner(Runner):
    """mmengine's Runner, which mmdet3d's scripts use with `runner_type = 'StratifiedRunner'`.

    - Checkpoints are complete or absent; `--resume` finds the latest complete one.
    - Weights that do not fit are an error that lists them. In fine-tuning (`load_from`) the head
      may differ: what differs is listed in a warning and starts from random weights.
    - Datasets are checked before training or testing: info file, first frame, order of the classes.
    - `--launcher pytorch` works without a GPU, over gloo.
    """

    cfg: Config
    _load_from: str | None
    _resume: bool
    _has_loaded: bool

    def __init__(self, model: nn.Module | dict, work_dir: str, **settings):
        _check_writable(Path(work_dir))
        self._is_training = False
        super().__init__(model, work_dir, **settings)

    def train(self) -> nn.Module:
        """Train, see mmengine."""
        self._is_training = True
        return super().train()

    def build_optim_wrapper(
        self, optim_wrapper: dict | OptimWrapper
    ) -> OptimWrapper | OptimWrapperDict:
        """Build the optimizer.

        Raises:
            ValueError: mixed precision (`--amp`) without a GPU.
        """
        try:
            return super().build_optim_wrapper(optim_wrapper)
        except AssertionError as error:
            if 'only available training on gpu' not in str(error):
                raise
            raise ValueError(
                'mixed precision needs a GPU and there is none here: leave out --amp; on a CPU '
                "`bev_dtype='auto'` takes bfloat16 where that is faster"
            ) from error

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build the logger; what is long goes to its file only, see `quiet_console`."""
        logger = super().build_logger(*args, **kwargs)
        quiet_console(logger)
        return logger

    def build_dataloader(self, dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """Build a loader and check its dataset.

        Raises:
            FileNotFoundError, ValueError: a missing or damaged info file, missing points, other
                classes than the model's.
        """
        settings = dataloader['dataset'] if isinstance(dataloader, dict) else {}
        check_files(settings)
        try:
            loader = super().build_dataloader(dataloader, *args, **kwargs)
        except Exception:
            for path in info_paths(settings):
                read_info_file(path)  # raises a clearer error if the file is the reason
            raise
        check_dataset(loader.dataset, self._class_names())
        return loader

    def build_evaluator(self, evaluator: Evaluator | dict | list) -> Evaluator:
        """Build the metrics; a missing info file is an error now, not after the last frame."""
        parts = evaluator if isinstance(evaluator, list) else [evaluator]
        for settings in parts:
            if isinstance(settings, dict):
                check_files(dict(ann_file=settings.get('ann_file')))
        return super().build_evaluator(evaluator)

    def build_param_scheduler(self, scheduler):
        """Build the schedulers; those that count epochs are made as long as the training.

        With another `train_cfg.max_epochs` than its config's, a schedule would end early or never.
        """
        epochs = (self.cfg.get('train_cfg') or {}).get('max_epochs')
        configs = [scheduler] if isinstance(scheduler, dict) else scheduler
        is_plain = isinstance(configs, list) and all(isinstance(c, dict) for c in configs)
        if epochs and is_plain:
            steps = len(self.train_dataloader)
            scheduler, before = fit_schedule(configs, epochs, steps)
            if before is not None:
                self.logger.info(
                    f'the learning-rate schedule of {before} epochs is scaled to the {epochs} '
                    'epochs of this training'
                )
        return super().build_param_scheduler(scheduler)

    def _class_names(self) -> list[str] | None:
        """Classes in the order of the head's labels; None if the model does not tell."""
        head = getattr(self._bare_model(), 'head', None)
        tasks = getattr(head, 'class_names', None)
        return None if tasks is None else [name for names in tasks for name in names]

    def _bare_model(self) -> nn.Module:
        return self.model.module if is_model_wrapper(self.model) else self.model

    def load_or_resume(self) -> None:
        """Load what `load_from` and `resume` ask for.

        A run that left no checkpoint starts from the beginning.
        """
        if self._resume and self._load_from is None and not self._has_loaded:
            self._load_from = latest_checkpoint(self.work_dir)
            if self._load_from is None:
                self._resume = False
                self.logger.info(
                    f'{self.work_dir} contains no checkpoint: training starts from the beginning'
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
        is_resuming = self._is_training and self._resume
        if is_resuming and not {'meta', 'message_hub', 'optimizer'} <= content.keys():
            raise ValueError(
                f'{filename}: contains weights and no state of training, so there is nothing to '
                f'resume; --cfg-options load_from={filename} starts a new training from them'
            )
        weights = content.get('state_dict', content)
        weights = {re.sub('^module[.]', '', name): value for name, value in weights.items()}
        self._load_weights(weights, filename, _dataset_classes(content))
        self._has_loaded = True
        self.logger.info(f'weights loaded from {filename}')
        return content

    def _load_weights(
        self, weights: dict[str, Tensor], filename: str, classes: list[str] | None
    ) -> None:
        """Load weights of a model of these classes; in fine-tuning, the head may differ."""
        model = self._bare_model()
        is_tuning = self._is_training and not self._resume
        misfit = check_fit(
            model,
            weights,
            filename,
            None if is_tuning else classes,
            self._class_names(),
            optional='head.' if is_tuning else None,
        )
        if misfit:
            self.logger.warning(f'{misfit}: these parts of the head start from random weights')
            own = model.state_dict()
            weights = {
                name: value
                for name, value in weights.items()
                if name in own and own[name].shape == value.shape
            }
        model.load_state_dict(weights, strict=not misfit)

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Write a checkpoint that is complete or absent.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        if '://' in str(out_dir):  # a store whose uploads are atomic
            return super().save_checkpoint(out_dir, filename, *args, **kwargs)
        path = Path(out_dir, filename)
        partial = Path(out_dir, f'{filename}{PARTIAL}')
        try:
            super().save_checkpoint(out_dir, partial.name, *args, **kwargs)
            with partial.open('rb') as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            before = latest_checkpoint(out_dir)
            hint = f'--resume continues from {before}' if before else 'start again'
            reason = os.strerror(error.errno or errno.EIO)
            raise OSError(
                f'{path}: the checkpoint could not be written ({reason}); make room, then {hint}'
            ) from error

    def setup_env(self, env_cfg: dict) -> None:
        """Join the other processes; over gloo without a GPU, where mmengine needs a CUDA device."""
        if self._launcher == 'pytorch' and not torch.cuda.is_available() and not is_distributed():
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for several processes; on a CPU, without a device."""
        if self.distributed and not torch.cuda.is_available() and not is_model_wrapper(model):
            finds_unused = self.cfg.get('find_unused_parameters', False)
            settings = dict(broadcast_buffers=False, find_unused_parameters=finds_unused)
            settings.update(model_wrapper_cfg or {}, device_ids=None)
            model_wrapper_cfg = settings
        return super().wrap_model(model_wrapper_cfg, model)


def _dataset_classes(checkpoint: dict) -> list[str] | None:
    """Classes of the dataset that a checkpoint was trained on, if it tells."""
    meta = checkpoint.get('meta') or {}
    return (meta.get('dataset_meta') or {}).get('classes')


def _check_writable(folder: Path) -> None:
    """Raise OSError for a folder that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        raise OSError(
            f'{folder}: the work folder cannot be written ({reason}); name another with --work-dir'
        ) from error
