"""Lets torchvision's CUDA wheel be imported beside a CPU build of torch: SGLang imports it, and nothing of it is used.

Its extension does not load without CUDA, and then its fake kernels have no operators to be registered for. They are declared here,
when torchvision is first looked for and no sooner: this file is read at every start of the interpreter.
"""

import sys


class _DeclareOperators:
    """A finder that finds nothing: it declares what torchvision misses, once, and steps aside."""

    def find_spec(self, name, *_path_and_target):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules[__name__].library = library


sys.meta_path.insert(0, _DeclareOperators())
