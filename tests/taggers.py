"""A tagger of the WD14 taggers' exact interface: a small real ONNX model that sees the mean colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, save

WORDS = [
    ("general", "9"),
    ("explicit", "9"),
    ("blue_theme", "0"),
    ("green_theme", "0"),
    ("red_theme", "0"),
    ("^_^", "0"),
    ("somebody_(series)", "4"),
]


def make_tagger(folder: Path, batch: int | str = "batch", words=WORDS) -> Path:
    """model.onnx with input [batch, 32, 32, 3]: means of blue, green, red over 255, in front of fixed numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["share"]),
        helper.make_node("MatMul", ["share", "spread"], ["placed"]),
        helper.make_node("Add", ["placed", "fixed"], ["output"]),
    ]
    spread = np.zeros((3, 7), np.float32)
    spread[[0, 1, 2], [2, 3, 4]] = 1
    fixed = np.array([0.7, 0.2, 0, 0, 0, 0.4, 0.9], np.float32)
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 32, 32, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 7])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("scale", TensorProto.FLOAT, [], [1 / 255]),
            helper.make_tensor("spread", TensorProto.FLOAT, [3, 7], spread.ravel()),
            helper.make_tensor("fixed", TensorProto.FLOAT, [7], fixed),
        ],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx")
    lines = [f"{number},{name},{category},1" for number, (name, category) in enumerate(words)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *lines]))
    return folder
