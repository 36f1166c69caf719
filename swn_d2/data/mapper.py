"""Reading images, with an error that names the image."""

from detectron2.data import DatasetMapper

from ..errors import UserError

__all__ = ["NamingDatasetMapper"]


class NamingDatasetMapper(DatasetMapper):
    """Detectron2's mapper. Its error says which image can't be used."""

    def __call__(self, dataset_dict):
        try:
            return super().__call__(dataset_dict)
        except (OSError, ValueError) as error:  # damaged, or not of the size that was promised
            raise UserError(
                f"cannot use image {dataset_dict['file_name']} (image id "
                f"{dataset_dict.get('image_id')}): {error}. Repair it, or take it out of the data "
                "set, and go on with --resume."
            ) from error
