"""Second-stage training of vision-language detectors on two channels. Imports nothing heavy."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`from ds_stage2ab import Detector`, which is loaded when it is asked for."""
    if name == "Detector":
        from ds_stage2ab.predict.detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
