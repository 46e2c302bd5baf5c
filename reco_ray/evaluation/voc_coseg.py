"""PASCAL VOC's 20 classes with one binary mask an image (`images/<Class>/*.jpg`, `masks/<Class>/*.png`).

Only the pixels of the masks are counted: "VOC20 foreground mIoU".
"""

from reco_ray.errors import RecoError
from reco_ray.evaluation.dataset import Dataset, Sample, packaged_vocabulary, require_folder
from reco_ray.storage import join

# The folders' names in the order of the classes.
FOLDERS = (
    "Aero Bicycle Bird Boat Bottle Bus Car Cat Chair Cow Table Dog Horse Mbike Person Plant Sheep Sofa Train Monitor"
).split()


def read(data: str) -> Dataset:
    """Opens the data set; errors name the file that is missing."""
    samples = []
    for label, folder in enumerate(FOLDERS):
        masks = set(require_folder(join(data, "masks", folder), "voc-coseg"))
        for name in require_folder(join(data, "images", folder), "voc-coseg"):
            mask = name.rpartition(".")[0] + ".png"
            if mask not in masks:
                raise RecoError(f"{join(data, 'masks', folder, mask)}: missing, but {name} needs it")
            samples.append(Sample(join(data, "images", folder, name), join(data, "masks", folder, mask), label))
    return Dataset("voc-coseg", packaged_vocabulary("voc20.txt"), samples)
