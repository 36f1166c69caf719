"""Sample weights for torchvision's detectors. It needs no Detectron2.

    model = fasterrcnn_resnet50_fpn(num_classes=11)
    weight_samples(model, SWN(strength=0.5, ease_in=(45_000, 67_500)))
    optimizer = join_adam(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), model)

and then the training loop that there was. docs/other_detectors.md has more.
"""

from .recorder import record_samples
from .weigh import join_adam, weight_samples

__all__ = ["join_adam", "record_samples", "weight_samples"]
