"""Graphs: what DALI does with images of a batch, on CUDA and on the CPU alike.

From: `dali`, whose feeds give images or JPEG files and the plan's crops, boxes and flips.
To:   images [b, H, W, 3] on the device.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyvgg.errors import BackendUnavailable
from tinyvgg.loading.batch import PixelPass

try:
    from nvidia.dali import Pipeline, fn, tensors, types
except ImportError as error:
    raise BackendUnavailable(
        "backend 'dali' needs nvidia-dali, which is not installed; run "
        "pip install nvidia-dali-cuda120 (nvidia-dali-cuda130 for CUDA 13) or use --backend torch"
    ) from error

DALI_TYPES = {
    torch.uint8: types.UINT8,
    torch.float32: types.FLOAT,
    torch.float16: types.FLOAT16,
    torch.bfloat16: types.FLOAT,
}
PREFETCH = 2  # batches DALI works on while the model has one


def define_pipeline(
    feed: Any,
    device: torch.device,
    batch_size: int,
    pixel_pass: PixelPass,
    *,
    is_augmented: bool,
) -> Pipeline:
    """Define the graph; the same operator for CUDA and for the CPU.

    Args:
        feed: called with the iteration, from 0; returns images uint8 [b, H + 2 p, W + 2 p, 3], p
            the `crop_pixels` of the plan, and of each the top and left of its crop, float32 [b], 0
            to 1, and its flip, int32 [b]. Without crop and flip only images, uint8 [b, H, W, 3].
        device: CUDA, with its number or without, or the CPU.
        batch_size: b, of this rank.
        pixel_pass: from stored images to those of a batch.
        is_augmented: whether to crop and flip.

    Returns:
        A pipeline that is not built yet. Its output: images [b, H, W, 3].
    """
    height, width, _ = pixel_pass.image_shape
    pipeline = _new_pipeline(device, batch_size)
    num_inputs = 4 if is_augmented else 1
    with pipeline:
        images, *crops = fn.external_source(
            feed,
            num_outputs=num_inputs,
            batch=True,
            no_copy=True,
            layout=["HWC", "", "", ""][:num_inputs],
            dtype=[types.UINT8, types.FLOAT, types.FLOAT, types.INT32][:num_inputs],
            ndim=[3, 0, 0, 0][:num_inputs],
        )
        if device.type == "cuda":
            images = images.gpu()
        arguments: dict[str, Any] = {}
        if is_augmented:
            top, left, flip = crops
            arguments |= {"crop": (height, width), "crop_pos_y": top, "crop_pos_x": left}
            arguments |= {"mirror": flip, "rounding": "round"}
        pipeline.set_outputs(_normalize(images, pixel_pass, arguments))
    return pipeline


def _new_pipeline(device: torch.device, batch_size: int) -> Pipeline:
    return Pipeline(
        batch_size=batch_size,
        num_threads=torch.get_num_threads(),
        device_id=device.index if device.type == "cuda" else None,
        prefetch_queue_depth=PREFETCH,
    )


def _normalize(images: Any, pixel_pass: PixelPass, arguments: dict[str, Any]) -> Any:
    """Crop and flip as the arguments say, and normalize unless the batch is of uint8."""
    normalization, dtype = pixel_pass.normalization, pixel_pass.dtype
    if dtype != torch.uint8:
        arguments = arguments | {
            "mean": [255 * mean for mean in normalization.mean],
            "std": [255 * std for std in normalization.std],
        }
    if not arguments:
        return images
    return fn.crop_mirror_normalize(
        images, dtype=DALI_TYPES[dtype], output_layout="HWC", **arguments
    )


def wrap_images(images: NDArray[np.uint8], *, is_pinned: bool) -> Any:
    """Return images, uint8 [b, H, W, 3], as an input of a pipeline, without a copy."""
    return tensors.TensorListCPU(images, layout="HWC", is_pinned=is_pinned)


def define_view_pipeline(
    feed: Any,
    device: torch.device,
    batch_size: int,
    pixel_pass: PixelPass,
    *,
    is_jpeg: bool,
    has_boxes: bool,
) -> Pipeline:
    """Define the graph of JPEG files, or of boxes of stored images.

    No pixel depends on the place of its image in the batch: the hardware decoder of some GPUs would
    take a share of each batch, and round otherwise, so it has none.

    Args:
        feed: called with the iteration, from 0; returns lists, b long, of files uint8 [bytes], or
            images uint8 [H, W, 3]; of tops and lefts, int32 [2], of crops, or of boxes inside the
            image; of heights and widths, int32 [2], of these; and flips, int32 [b].
        device: CUDA, with its number or without, or the CPU.
        batch_size: b, of this rank.
        pixel_pass: its `image_shape` is that of the batch's images.
        is_jpeg: whether the feed gives files.
        has_boxes: whether boxes are cut out and scaled; else images are cropped, and what lies
            outside of them is the mean color.

    Returns:
        A pipeline that is not built yet. Its output: images [b, H, W, 3].
    """
    height, width, _ = pixel_pass.image_shape
    is_cuda = device.type == "cuda"
    pipeline = _new_pipeline(device, batch_size)
    with pipeline:
        stored, first, extent, flip = fn.external_source(
            feed,
            num_outputs=4,
            batch=True,
            no_copy=True,
            layout=["" if is_jpeg else "HWC", "", "", ""],
            dtype=[types.UINT8, types.INT32, types.INT32, types.INT32],
            ndim=[1 if is_jpeg else 3, 1, 1, 0],
        )
        decoding = {
            "device": "mixed" if is_cuda else "cpu",
            "output_type": types.RGB,
            "adjust_orientation": False,
            "jpeg_fancy_upsampling": True,
            "hw_decoder_load": 0.0,
        }
        if is_jpeg and has_boxes:
            images = fn.decoders.image_slice(stored, first, extent, axes=[0, 1], **decoding)
        elif is_jpeg:
            images = fn.decoders.image(stored, **decoding)
        else:
            images = stored.gpu() if is_cuda else stored
        if has_boxes:
            if not is_jpeg:
                images = fn.slice(images, first, extent, axes=[0, 1])
            images = fn.resize(
                images,
                resize_y=height,
                resize_x=width,
                interp_type=types.INTERP_LINEAR,
                antialias=True,
            )
        else:
            images = fn.slice(
                images,
                first,
                extent,
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=pixel_pass.normalization.fill.tolist(),
            )
        pipeline.set_outputs(_normalize(images, pixel_pass, {"mirror": flip}))
    return pipeline
