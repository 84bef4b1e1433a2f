"""What samples are measured with: labels in the data's shares, and pictures for models of latents."""

import torch

from consistune.cli.screen import Screen
from consistune.data.images import DataSplit, ImageSet
from consistune.reproduce.judge import Judge


def images_of(*counts: int) -> ImageSet:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return ImageSet.of("some", torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels, ("a", "b", "c"))


def judge(data: DataSplit, samples: int) -> Judge:
    return Judge(data, samples, None, Screen(quiet=True))


def test_labels_are_the_classes_in_turn_or_in_the_shares_of_the_images() -> None:
    assert judge(DataSplit(images_of(5, 6, 10), None), 7).labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    labels = judge(DataSplit(images_of(2, 6, 12), None), 40).labels
    assert torch.bincount(labels).tolist() == [4, 12, 24]
    assert len(set(labels[:8].tolist())) > 1  # not sorted: the first ones are shown


def test_models_of_latents_are_measured_against_the_pictures() -> None:
    latents, pictures = images_of(2, 2, 2), images_of(3, 3, 3)
    asked = judge(DataSplit(latents, latents, DataSplit(pictures, pictures)), 3)
    assert asked.data.train is pictures
    assert asked.data.held_out is pictures
