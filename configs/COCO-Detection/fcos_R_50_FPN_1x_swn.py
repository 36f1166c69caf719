"""FCOS with SWN as a LazyConfig, for lazyconfig_train_net.py of Detectron2's main branch."""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config

from swn_d2.engine import join_adam, sample_weighter_parameters
from swn_d2.modeling.fcos import SWNFCOS
from swn_d2.weighting import SWN

# With an underscore, since every other config object in this file becomes a part of the config.
_zoo = get_config("COCO-Detection/fcos_R_50_FPN_1x.py")
model, dataloader, train, lr_multiplier = (
    _zoo[part] for part in ("model", "dataloader", "train", "lr_multiplier")
)

model._target_ = SWNFCOS
model.sample_weighter = L(SWN)(
    box_loss_dim=1,  # GIoU
    strength=0.5,
    # In iterations: to be changed together with train.max_iter.
    ease_in=[round(share * train.max_iter) for share in (0.5, 0.75)],
)

optimizer = L(join_adam)(
    params=L(sample_weighter_parameters)(model=None),  # the training script sets params.model
    detector=_zoo.optimizer,
    weighter=dict(lr=1e-3, weight_decay=1e-4),
)
optimizer.detector.params.model = "${...params.model}"
