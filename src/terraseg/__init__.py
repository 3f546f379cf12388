"""From an area of interest to a tested map: each step of `terraseg` as a function, loaded when it is first used."""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
