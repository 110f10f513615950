"""tinyvgg: TinyImageNet and VGG at the speed of the accelerator, not of the JPEG decoder.

packing -> shards -> loading -> training -> inference -> reporting, with `model` beside them
and all wiring in `cli`. The left half writes uint8 shards and never imports torch; the right
half turns shards into a trained network. README.md draws the whole of it.
"""

__version__ = "0.1.0"
