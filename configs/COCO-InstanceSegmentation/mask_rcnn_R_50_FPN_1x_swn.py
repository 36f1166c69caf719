"""mask_rcnn_R_50_FPN_1x_swn.yaml as a LazyConfig, for Detectron2's lazyconfig_train_net.py."""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config

from swn_d2.engine import join_adam, sample_weighter_parameters
from swn_d2.modeling import SWNFastRCNNOutputLayers, SWNROIHeads
from swn_d2.weighting import SWN

# With an underscore, since every other config object in this file becomes a part of the config.
_zoo = get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, dataloader, train, lr_multiplier = (
    _zoo[part] for part in ("model", "dataloader", "train", "lr_multiplier")
)

# The paper's setting, which the baseline has as well; the reasons are in Base-RCNN-FPN.yaml.
model.roi_heads.box_predictor.smooth_l1_beta = 1.0
dataloader.train.mapper.augmentations[0].short_edge_length = [800]
train.max_iter = 87950
lr_multiplier.scheduler.milestones = [58633, 80620, train.max_iter]
lr_multiplier.warmup_length = 1000 / train.max_iter

model.roi_heads._target_ = SWNROIHeads
model.roi_heads.box_predictor._target_ = SWNFastRCNNOutputLayers
model.roi_heads.sample_weighter = L(SWN)(
    lambdas=dict(cls=0.5, box=0.5, mask=0.5),
    box_loss_dim=4,  # 1 for an IoU loss
    has_mask=True,
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
