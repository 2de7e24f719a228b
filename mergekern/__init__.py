"""mergekern: pairwise mergeability metrics of fine-tuned models, for all pairs at once.

Names are loaded on first use, so that a program that only reads tables never imports torch (2 s); `__init__.pyi` says
what there is.

>>> import mergekern
>>> mergekern.CATALOGUE["stable_rank"].range
(1, 2)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
