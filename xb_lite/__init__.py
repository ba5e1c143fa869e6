"""Helper package of the book on defending chat models against jailbreaks.

One room a chapter: what a notebook derives is in the room of its name and imported by the ones that
follow (``from xb_lite.losses import erase``, of 04_xboundary_loss). A room offers its main names
and loads them when they are asked for; importing the package alone loads nothing heavy.
"""

from importlib.metadata import version

__version__ = version("xb-lite")
