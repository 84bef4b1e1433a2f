"""The measure of the embedded digits: a small classifier, trained on the spot, and its features."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sct.core.posterior import dequantise
from sct.core.rng import mix_seed
from sct.evaluate.distances import relative_frechet
from sct.evaluate.memorisation import memorisation_ratio


class DigitClassifier(nn.Module):
    """Two convolutions and a hidden layer; `features` are the hidden layer's 64 activations."""

    def __init__(self, num_classes: int = 10, width: int = 32, features: int = 64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(2 * width * 16, features),
            nn.SiLU(),
        )
        self.head = nn.Linear(features, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """uint8 images [n, 1, 8, 8] → fp32 [n, 64]."""
        return self.trunk(dequantise(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def train_classifier(images: Tensor, labels: Tensor, seed: int = 0, epochs: int = 40) -> DigitClassifier:
    """A classifier of uint8 images [n, 1, 8, 8] by labels [n], the same for the same seed."""
    state = torch.get_rng_state()
    try:
        torch.manual_seed(mix_seed(seed, len(images)))
        model = DigitClassifier(int(labels.max()) + 1).train()
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


@dataclass(frozen=True)
class Measures:
    """How good a set of samples is.

    Attributes:
        frechet_train, frechet_held_out: Fréchet distance of features, in % of the training images' variance.
        accuracy: share of samples that the classifier gives the label they were drawn for.
        memorisation: see `memorisation_ratio`.
    """

    frechet_train: float
    frechet_held_out: float
    accuracy: float | None
    memorisation: float


class DigitMeasure:
    """Measures samples against training and held-out digits."""

    def __init__(
        self, train: Tensor, train_labels: Tensor, held_out: Tensor, held_out_labels: Tensor, seed: int = 0
    ) -> None:
        self.classifier = train_classifier(train, train_labels, seed)
        self.train, self.held_out = train, held_out
        self.train_features = self.classifier.features(train)
        self.held_out_features = self.classifier.features(held_out)
        self.classifier_accuracy = self._accuracy(held_out, held_out_labels)

    def _accuracy(self, images: Tensor, labels: Tensor) -> float:
        return float((self.classifier(images).argmax(1) == labels).double().mean())

    def __call__(self, samples: Tensor, labels: Tensor | None = None) -> Measures:
        """uint8 samples [n, 1, 8, 8] and the labels [n] they were drawn for."""
        features = self.classifier.features(samples)
        return Measures(
            frechet_train=relative_frechet(features, self.train_features),
            frechet_held_out=relative_frechet(features, self.held_out_features),
            accuracy=None if labels is None else self._accuracy(samples, labels),
            memorisation=memorisation_ratio(samples, self.train, self.held_out),
        )
