"""What every step works with: the settings, a place to tell progress, and the weights, loaded once and kept.

No torch here, nor in the steps that do without the model: whoever runs the steps hands in how the model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from braingemma.checkpoint.weights import WeightsInfo, describe_weights
from daemon.config.sections import Settings

if TYPE_CHECKING:
    from braingemma.model.braingemma3d import BrainGemma3D

Progress = Callable[[int, int, str], None]


def say_nothing(_done: int, _total: int, _text: str) -> None:
    """A `Progress` that nobody follows."""


@dataclass
class Context:
    """The surroundings of the steps of one process.

    Attributes:
        settings: The sections `model`, `checks`, `explain`, `results` and `selection` count.
        load_model: Loads the model that the settings name.
        progress: Called with (done, total, what) while a step works.
    """

    settings: Settings
    load_model: Callable[[Settings], BrainGemma3D]
    progress: Progress = say_nothing

    @cached_property
    def model(self) -> BrainGemma3D:
        """The model, loaded when it is first needed."""
        return self.load_model(self.settings)

    @cached_property
    def weights(self) -> WeightsInfo:
        """Name, digest and limits of the weights."""
        return describe_weights(self.settings.model.weights)
