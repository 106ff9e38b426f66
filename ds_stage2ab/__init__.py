"""Second-stage training of vision-language detectors on two channels. Imports nothing heavy."""

__version__ = "0.1.0"
