"""A small classifier of a data set's own labels, trained when it is needed, and its features."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from consistune.core.posterior.mean import dequantise
from consistune.core.rng import mix_seed

FEATURES = 64
SMALLEST_SIDE = 4
EPOCHS, IMAGES_SEEN = 40, 60_000
"""At most 40 passes, and about 60 000 images in all for larger sets (at least 5 passes)."""


class ImageClassifier(nn.Module):
    """Convolutions that halve the image down to 4 pixels and a hidden layer of 64 units, its `features`."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels, side, _ = image_shape
        halvings = 1
        while side >> (halvings + 1) >= SMALLEST_SIDE:
            halvings += 1
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
        for channels_in, channels_out in pairwise((width, *(2 * width,) * halvings)):
            layers += [nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1), nn.SiLU()]
        for _ in range(halvings):
            side = (side + 1) // 2
        hidden = nn.Linear(2 * width * side * side, FEATURES)
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), hidden, nn.SiLU())
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """uint8 images [n, C, H, W] → fp32 [n, 64]."""
        return self.trunk(dequantise(images))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images [n, C, H, W] → logits [n, num_classes]."""
        return self.head(self.features(images))


def train_classifier(images: Tensor, labels: Tensor, seed: int = 0) -> ImageClassifier:
    """A classifier of square uint8 images [n, C, H, W] by labels [n], the same for the same seed."""
    epochs = min(EPOCHS, max(5, round(IMAGES_SEEN / len(images))))
    state = torch.get_rng_state()
    try:
        torch.manual_seed(mix_seed(seed, len(images)))
        _, channels, height, width = images.shape
        model = ImageClassifier((channels, height, width), int(labels.max()) + 1).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(images)), 64):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(images[rows]), labels[rows], label_smoothing=0.05)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
    finally:
        torch.set_rng_state(state)
    return model.eval().requires_grad_(False)
