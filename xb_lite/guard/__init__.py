"""Replies that are checked while they are said, and ended by a refusal (chapter 8)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "stream": ["Detector", "Guard"],
        "detectors": ["GibberishDetector", "ProbeDetector"],
        "plane": ["Plane", "fitted_plane"],
        "fitting": ["detectors_named", "gibberish_detector", "probe_detector"],
        "streamer": ["GuardStreamer"],
    },
)
