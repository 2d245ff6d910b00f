"""Pillion: batches HTTP requests for a language model in CTranslate2's format. The command of the wheel."""

# As in Cargo.toml and deploy/engine/requirements.txt; deploy/wheel/build compares them.
__version__ = "0.2.0"
ENGINE_VERSION = "4.8.4"
