"""Loads a file of `mgsd data vlmevalkit` with VLMEvalKit's own class and builds the prompt of every line.

    mgsd data vlmevalkit --data data --out LMUData/boards.tsv
    python docs/check_vlmevalkit.py LMUData/boards.tsv

Needs VLMEvalKit (pip install --no-deps ms-vlmeval, or a checkout on PYTHONPATH) and what its image data sets import:
pandas, pillow, numpy, openpyxl, tabulate, portalocker, validators, requests, matplotlib, tqdm, rich, python-dotenv. The
kit's packages import all models and benchmarks at once, with some fifty dependencies; here only the modules of image
data sets are imported.
"""

import base64
import importlib.util
import io
import os
import sys
import types

path = os.path.abspath(sys.argv[1])
name = os.path.splitext(os.path.basename(path))[0]
os.environ["LMUData"] = os.path.dirname(path)
root = os.path.dirname(importlib.util.find_spec("vlmeval").origin)
for package, folder in (("vlmeval", root), ("vlmeval.dataset", os.path.join(root, "dataset"))):
    module = types.ModuleType(package)
    module.__path__ = [folder]
    sys.modules[package] = module

from PIL import Image  # noqa: E402
from vlmeval.dataset.image_vqa import CustomVQADataset  # noqa: E402

data = CustomVQADataset(name)
for index, line in data.data.iterrows():
    picture, question = data.build_prompt(line)
    assert (picture["type"], question["type"]) == ("image", "text"), line["case_id"]
    assert question["value"] == line["question"], line["case_id"]
    written = Image.open(picture["value"]).convert("RGB")
    given = Image.open(io.BytesIO(base64.b64decode(line["image"]))).convert("RGB")
    assert written.tobytes() == given.tobytes(), line["case_id"]
print(f"{len(data)} lines, each with its picture before its question, as they were written")
