"""docs/ARTIFACT.md is enough to read a file: its own program, run as it stands, agrees with the loader."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from hce_engine.artifact import Artifact, container, document, load, save, strict_json

PAGE = (Path(__file__).parents[2] / "docs" / "ARTIFACT.md").read_text(encoding="utf-8")


def test_the_program_of_the_page_decodes_a_file(artifact: Artifact, tmp_path: Path) -> None:
    save(tmp_path / "m.hce", artifact)
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(programs) == 1
    names: dict[str, Any] = {}
    exec(programs[0], names)
    decoded, params = names["decode"](tmp_path / "m.hce")
    graph = load(tmp_path / "m.hce").graph
    ours = {f"{n.name}/{k}": v for n in graph.nodes for k, v in n.params.items()}
    assert params.keys() == ours.keys()
    for name, value in ours.items():
        assert np.array_equal(params[name], value), name
    assert [n["name"] for n in decoded["nodes"]] == [n.name for n in graph.nodes]
    assert [m["name"] for m in decoded["members"] if m["role"] == "vote"] == ["q", "s"]


def test_the_page_names_every_key() -> None:
    rules = (document._DOCUMENT, document._INPUT, document._NODE, document._MEMBER, document._PARAM, document._SPEC)
    for key in {key for group in rules for key in group}:
        assert f"`{key}`" in PAGE or f'"{key}"' in PAGE, key


def test_the_page_states_the_limits_in_force() -> None:
    assert container.FILE_LIMIT == 4 << 30
    assert container.HEADER_LIMIT == 4 << 20
    assert container.TENSOR_LIMIT == document.NODE_LIMIT == 8192
    assert document.MEMBER_LIMIT == 256
    assert document.DIMENSION_LIMIT == 1 << 20
    assert document.ELEMENT_LIMIT == 1 << 31
    assert document.TEXT_LIMIT == 65536
    assert strict_json.DEPTH_LIMIT == 12
    assert strict_json.INTEGER_LIMIT == 2**53
