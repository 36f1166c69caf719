"""How likely the class of an object is to be right, learned while a detector is trained."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .network import SampleWeightingNetwork
from .processes import of_all_processes
from .statistics import SampleStatistics

__all__ = ["ClassRightness"]

_CLAMP = 8.0  # of the logit
_NUM_RECENT = 512  # samples that the network learns from in an iteration
_MOST_OBJECTS = 2**14  # of a batch in one process; a GPU need not be asked how many there are
_LARGEST_LOSS = 1e4  # as in SampleStatistics.finite
_UNLIKELY = 8  # times less likely than by chance is a class that is taken for a wrong one
_KEPT = 0.98  # of the numbers of unlikely classes, from one batch to the next
_TOO_FEW = 20  # unlikely classes that say nothing yet
_SMALLEST_MEAN = 0.05  # weight that is made 1


class ClassRightness(nn.Module):
    """The paper's network, which sees of a positive the means over its object's regions, and tells
    annotated classes from decoys. (Not in the paper.)

    The loss of one region says little about its annotation, those of all regions of its object
    more: a wrong class shows in what the detector does not come to agree with. Only the label loss
    is weighted, the part of classification that asks *which* class. The rest,
    ``-log p(it is an object)``, is true of an object whose class is wrong as well, and keeps
    weight 1.

    Each object has a decoy, another class. The network is trained to tell annotated classes from
    decoys, on the last samples of all processes, so that its output z becomes the logarithm
    of r, the density of annotated classes over that of decoys. Annotations are a mixture of right
    ones and a share e of wrong ones, which are taken to look like decoys, so that ``1 - e / r``, at
    least 0, is the probability of being right (as Elkan and Noto 2008 learn from positive and
    unlabelled data). Divided by its mean over the batch, it is the weight: the batch then stands
    for one without wrong classes (Liu and Tao 2016), and where the detector can't tell, all weights
    are 1. e is read off where the detector finds a class eight times less likely than by chance:
    hardly a right annotation is there, and of the wrong ones the same part as of the decoys.

    What it has seen is in the state dict, and the same in all processes.

    Attributes:
        recent: (512, 5 + D) the last samples, of each what is seen of its object, -1 for none yet.
        unlikely: (2,) how many annotated classes and how many decoys the detector found unlikely
            in the last batches, the older ones counting less.
    """

    def __init__(self, *, box_loss_dim: int):
        """
        Args:
            box_loss_dim: D, columns of the detector's box loss.
        """
        super().__init__()
        self.network = SampleWeightingNetwork(
            ["cls"], box_loss_dim=box_loss_dim, init="zero_output"
        )
        self.register_buffer("recent", torch.full((_NUM_RECENT, 5 + box_loss_dim), -1.0))
        self.register_buffer("unlikely", torch.zeros(2))

    def forget(self) -> None:
        """Begin with another data set."""
        self.recent.fill_(-1)
        self.unlikely.zero_()

    @property
    def wrong_share(self) -> Tensor:
        """(), what is taken for the share of annotations whose class is wrong."""
        annotated, decoys = self.unlikely
        # Where there are few unlikely classes yet, anything between these two.
        low, high = (n / (decoys + _TOO_FEW) for n in (annotated, annotated + _TOO_FEW))
        return torch.minimum(_believed(low), _believed(high))

    def forward(self, statistics: SampleStatistics) -> tuple[Tensor, Tensor]:
        """What the R samples of a batch count in the label loss.

        Args:
            statistics: finite, and in no autocast, since there are exponentials and sums over all
                samples.

        Returns:
            (R,) the weights, 1 for negatives and where there is no other class; and (), what
            trains the network.

        Raises:
            UserError: the detector does not tell the object of a sample, or the losses of classes.
        """
        for name in ("object", "gt_class", "label_losses"):
            if name not in statistics.details:
                raise UserError(
                    f"classes are weighted by object, but the detector does not tell the {name} of "
                    "its samples; have its adapter give that as a detail, or take SWN without cls "
                    "among its tasks."
                )
        label_losses = statistics.detail("label_losses").float()
        objects = everyone = self._look(statistics, label_losses)
        if torch.is_grad_enabled():  # else other processes may do something else
            (everyone,) = of_all_processes(objects)
            self._learn_of(everyone, bound=math.log(_UNLIKELY * label_losses.shape[1]))
        own = probability = self._probability(everyone)
        if everyone is not objects:
            own = self._probability(objects)
        mean = probability.mean().clamp(min=_SMALLEST_MEAN)
        w = torch.ones_like(statistics.cls_loss)
        w = w.index_copy(0, statistics.foreground, own / mean)
        return w, self._objective()

    def _look(self, statistics: SampleStatistics, label_losses: Tensor) -> Tensor:
        """(F, 5 + D), of each positive the means over its object's regions: the losses and the
        probabilities of the annotated class and of the decoy, the IoU, and the box loss."""
        foreground = statistics.foreground
        objects = statistics.detail("object")[foreground] % _MOST_OBJECTS
        classes = statistics.detail("gt_class")[foreground]
        num_classes = label_losses.shape[1]
        another = 1 + (objects + statistics.iteration) % max(num_classes - 1, 1)
        decoys = (classes + another) % num_classes
        losses = label_losses.gather(1, torch.stack([classes, decoys], dim=1))
        losses = torch.nan_to_num(losses).clamp(0, _LARGEST_LOSS)
        iou, box_loss = statistics.iou[foreground, None], statistics.box_loss[foreground]
        seen = torch.cat([losses, torch.exp(-losses), iou, box_loss], dim=1)
        total = seen.new_zeros(_MOST_OBJECTS, 1 + seen.shape[1])
        total = total.index_add(0, objects, torch.cat([torch.ones_like(iou), seen], dim=1))
        return total[objects, 1:] / total[objects, :1]

    @torch.no_grad()
    def _learn_of(self, everyone: Tensor, bound: float) -> None:
        """Take in the samples (F', 5 + D) of a batch; a class is unlikely whose loss is larger than
        ``bound``."""
        some = everyone
        if len(everyone) > _NUM_RECENT:  # of all images
            even = torch.linspace(0, len(everyone) - 1, _NUM_RECENT, device=everyone.device)
            some = everyone[even.long()]
        self.recent.copy_(torch.cat([self.recent, some])[-_NUM_RECENT:])
        self.unlikely *= _KEPT
        self.unlikely += (everyone[:, :2] > bound).sum(dim=0)

    def _objective(self) -> Tensor:
        """(), how badly annotated classes are told from decoys: the mean cross-entropy over the
        last samples."""
        recent = self.recent.clone()  # which the next batch changes, maybe before backward
        is_one = recent[:, 0] >= 0
        both = torch.cat([_annotated(recent), _of_decoys(recent)])
        annotated, decoys = self._logit(both).split(len(recent))
        told = F.softplus(-annotated) + F.softplus(decoys)
        return (told * is_one).sum() / (2 * is_one.sum()).clamp(min=1)

    @torch.no_grad()
    def _probability(self, objects: Tensor) -> Tensor:
        """(n,) of what is seen of n objects, how likely the class of each is right."""
        z = self._logit(_annotated(objects))
        return (1 - self.wrong_share * torch.exp(-z)).clamp(min=0)

    def _logit(self, objects: Tensor) -> Tensor:
        """(n,) z of n objects with a class each: (n, 3 + D) its loss and probability, the IoU and
        the box loss."""
        loss, prob, iou = objects[:, :3].unbind(dim=1)
        features = {
            "cls_loss": loss[:, None],
            "box_loss": objects[:, 3:],
            "iou": iou[:, None],
            "prob": prob[:, None],
        }
        return self.network.of_positives(features).squeeze(1).clamp(-_CLAMP, _CLAMP)


def _annotated(objects: Tensor) -> Tensor:
    """(n, 3 + D) of what is seen of n objects (n, 5 + D) that of their annotated classes."""
    return torch.cat([objects[:, 0:1], objects[:, 2:3], objects[:, 4:]], dim=1)


def _of_decoys(objects: Tensor) -> Tensor:
    """The same of their decoys; the box does not depend on the class."""
    return torch.cat([objects[:, 1:2], objects[:, 3:4], objects[:, 4:]], dim=1)


def _believed(share: Tensor) -> Tensor:
    """What to take for the share of wrong classes where this one, at least 0, seems to be wrong.

    From 0.2 to 0.4 it is believed. Few that seem to be wrong are the mistakes of the detector,
    which it would keep if these objects did not count; and where most do, it can't tell yet.
    """
    return torch.minimum(share, torch.minimum(2 * share - 0.2, 1.2 - 2 * share)).clamp(min=0)
