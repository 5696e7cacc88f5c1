"""Errors that a user can act on: each names the file, key or parameter and says what to do."""


class FvlmError(Exception):
    """Base of every error this project raises on purpose."""


class ParamsError(FvlmError):
    """`params.yaml` or a preset is invalid; the message lists every fault."""


class SourceError(FvlmError):
    """`collect.source` cannot be listed or fetched."""


class VideoError(FvlmError):
    """A video cannot be used. `reason` is the typed reason that the manifest records."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ShardError(FvlmError):
    """A shard or manifest is missing, damaged or does not fit the parameters."""


class WeightsError(FvlmError):
    """Pretrained weights cannot be found, or are not the ones that were asked for."""


class CheckpointError(FvlmError):
    """A checkpoint is damaged or belongs to another configuration."""


class TrainingError(FvlmError):
    """Training cannot go on, for example because the loss is not finite."""
