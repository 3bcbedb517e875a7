"""The two ways in which this package says no."""


class CheckpointError(ValueError):
    """The checkpoint cannot be loaded as it is: its config, its tensors, or a kind of model that is not offered."""


class InputError(ValueError):
    """A prompt or a setting that the model cannot take: an id out of range, no tokens, more tokens than fit."""
