"""The ``.hce`` file: one safetensors file that holds a verified graph and everything needed to use it.

``docs/ARTIFACT.md`` specifies the format. ``container`` handles the bytes, ``strict_json`` the text, ``document`` the
meaning, ``store`` puts them together.
"""

from .document import SCHEMA_VERSION, Artifact
from .store import digest, load, save

__all__ = ["SCHEMA_VERSION", "Artifact", "digest", "load", "save"]
