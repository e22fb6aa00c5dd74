#!/usr/bin/env python3
"""Rewrites parity/ beside this file: a tiny random checkpoint of tiny/config.json, and what
transformers computes from it. The test `it_equals_the_reference` compares.

    python tests/parity.py

Needs the packages of xtask/python/requirements.txt in Kiln's tree.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "<KILN>/xtask/python"))

import fixtures

CONFIG = HERE / "tiny/config.json"
# What transformers calls the architecture to compare with: its own name, once transformers has it.
MODEL_TYPE = "<MODEL_TYPE>"


def build(seed: int):
    """Model and processor with the weights of a seed. A model that is not of <LIKE>'s kind builds
    its own here, with transformers' classes."""
    return fixtures.tiny(CONFIG, MODEL_TYPE, seed)


if __name__ == "__main__":
    fixtures.write_parity(HERE / "parity", build, CONFIG, images=<IMAGES>)
