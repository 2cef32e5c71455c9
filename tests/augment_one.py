"""Augmentation of a single sample, as the tests of pictures and of volumes want it."""

import numpy as np
from torch import Tensor

from rwkvseg.data.augmentation import augment_batch, draw_numbers
from rwkvseg.data.transforms import Augmentation


def augment_one(
    settings: Augmentation, image: Tensor, label: Tensor, generator: np.random.RandomState
) -> tuple[Tensor, Tensor]:
    """Image (C, *spatial) and label (*spatial) as a batch of one would be augmented."""
    numbers = draw_numbers(settings, len(image), generator)
    images, labels = augment_batch(settings, image[None], label[None], numbers[None])
    return images[0], labels[0]
