"""MMSegmentation: label ids as grey PNG in `ann_dir/train/`, images in `img_dir/train/`, `dataset.py` for a config."""

from collections.abc import Iterable

import numpy as np

from reco_ray.mask_export.mask_format import ExportPlan, Finisher, MaskedImage, MaskFormat, PartWriter
from reco_ray.segmentation.masks import encode_grey_png


class Mmseg(MaskFormat):
    """MMSegmentation's label maps."""

    title = "MMSegmentation"
    objects = "masks"
    image_folder = "img_dir/train"
    image_kinds = ("JPEG",)  # a data set has one suffix
    most_labels = 254  # 255 is ignored; with a background there is one more

    def write_part(self, part: str, images: Iterable[MaskedImage], plan: ExportPlan, out: PartWriter) -> None:
        """Writes a map of label ids for every image."""
        for image in images:
            out.write(f"ann_dir/train/{image.name}.png", encode_grey_png(image.labels, len(plan.labels)))
            out.count(len(image.concepts(plan)))

    def finish(self, plan: ExportPlan, out: Finisher) -> None:
        """Writes the data set as a config of MMSegmentation has it."""
        colours = np.array(plan.palette).tolist()
        out.write(
            "dataset.py",
            [
                '"""For a config of MMSegmentation: `data_root` is the folder of this file."""\n\n'
                "dataset = dict(\n"
                '    type="BaseSegDataset",\n'
                '    data_root=".",\n'
                '    data_prefix=dict(img_path="img_dir/train", seg_map_path="ann_dir/train"),\n'
                '    img_suffix=".jpg",\n'
                '    seg_map_suffix=".png",\n'
                "    reduce_zero_label=False,\n"
                f"    metainfo=dict(classes={tuple(plan.labels)!r}, palette={colours!r}),\n"
                ")\n"
            ],
        )


FORMAT = Mmseg()
