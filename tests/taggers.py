"""A tagger of the WD14 taggers' exact interface, a small real ONNX model that sees the mean colour; a small BLIP."""

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


def make_captioner(folder: Path) -> Path:
    """BLIP's real classes with random weights and a vocabulary of a few words, for pictures of 32 × 32."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "cat", "dog", "on", "grass"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = BlipConfig(
        text_config=small
        | {"vocab_size": len(words), "encoder_hidden_size": 16, "bos_token_id": 5, "eos_token_id": 3, "pad_token_id": 0}
        | {"sep_token_id": 3},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
        image_text_hidden_size=8,
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    return folder
