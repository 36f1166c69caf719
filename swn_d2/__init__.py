"""swn_d2: learned weights for the training samples of Detectron2's detectors.

Importing it registers its detectors and data sets with Detectron2. Where Detectron2 is missing,
:mod:`swn_d2.weighting`, :mod:`swn_d2.torchvision` and :mod:`swn_d2.recording`, which do not need
it, still work.
"""

import warnings

from . import weighting
from .errors import UserError, has_detectron2, require_detectron2

__version__ = "0.1.0"

__all__ = ["UserError", "weighting"]

if has_detectron2():
    with warnings.catch_warnings():
        # Said by torch of fvcore; nothing here can mend it.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        from . import data, engine, modeling
    from .config import add_swn_config, load_config
    from .engine import SWNTrainer
    from .modeling import SWNCascadeROIHeads, SWNRetinaNet, SWNROIHeads

    __all__ += [
        "SWNCascadeROIHeads",
        "SWNROIHeads",
        "SWNRetinaNet",
        "SWNTrainer",
        "add_swn_config",
        "data",
        "engine",
        "load_config",
        "modeling",
    ]
else:

    def __getattr__(name):
        if not name.startswith("__"):
            require_detectron2()
        raise AttributeError(name)
