"""Do the samples show what they were asked to show?"""

import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.metrics.classifier import ImageClassifier
from consistune.metrics.gather import summed
from consistune.metrics.metric import Block, Metric, Result, SampleBatch


@torch.inference_mode()
def count_correct(model: ImageClassifier, images: Tensor, labels: Tensor, batch: int = 512) -> int:
    """Number of uint8 images [n, C, H, W] that a classifier, wherever it is, gives their label [n]."""
    device = next(model.parameters()).device
    pairs = zip(torch.split(images, batch), torch.split(labels, batch), strict=True)
    return sum(int((model(x.to(device)).argmax(1) == y.to(device)).sum()) for x, y in pairs)


class Accuracy(Metric):
    """Value "accuracy": the share of samples that the classifier gives the label they were drawn for."""

    def check(self) -> None:
        if self.setup.classifier is None:
            raise UserError("needs a classifier of the data's labels", "--metrics accuracy", "leave it out")
        if not self.setup.labelled:
            raise UserError("the samples are drawn for no labels", "--metrics accuracy", "leave it out")

    def start(self, block: Block) -> None:
        super().start(block)
        self.correct_and_all = torch.zeros(2, dtype=torch.long)

    def accumulate(self, batch: SampleBatch) -> None:
        if batch.labels is not None and self.setup.classifier is not None:
            correct = count_correct(self.setup.classifier, batch.images, batch.labels)
            self.correct_and_all += torch.tensor([correct, len(batch.labels)])

    def result(self) -> Result:
        correct, total = summed(self.correct_and_all, self.block.world).tolist()
        return Result({"accuracy": correct / total} if total else {})
