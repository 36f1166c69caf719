"""Checks of the data sets that a config names, made before any training time is spent.

One module for each thing that can be wrong; the imports go one way, from the first to the last:
``datasets``, ``coco`` and ``voc``, ``annotations``, ``boxes``, ``masks``, ``pictures``,
``sampling``, ``checked``.
"""

from .datasets import check_data, check_datasets

__all__ = ["check_data", "check_datasets"]
