"""Makes the bundles of `sdexport.testing` anew, of random weights.

    python scripts/testing_bundle.py

Needed once the format of bundles changes, or what a build makes of a checkpoint.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sdexport  # noqa: E402  # from this checkout
from sdexport.testing import BUNDLES  # noqa: E402
from tests.checkpoints import TINY_TEXT, TINY_UNET, TINY_VAE, make_tiny_checkpoint  # noqa: E402

UNET = TINY_UNET | {"block_out_channels": (8, 16), "cross_attention_dim": 16, "norm_num_groups": 4}
VAE = TINY_VAE | {"block_out_channels": (4, 4, 8, 8), "norm_num_groups": 2}
TEXT = TINY_TEXT | {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 16}
SIDE = sdexport.Range(32, 64, 128)
STAMP = (1980, 1, 1, 0, 0, 0)
"""Of every file in an archive, so that the same bundle is the same archive."""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = make_tiny_checkpoint(folder / "tiny", unet=UNET, vae=VAE, text=TEXT)
        sdexport.export_checkpoint(checkpoint, folder / "onnx")
        for target, archive in BUNDLES.items():
            options = sdexport.BuildOptions(
                target,
                sdexport.Precision.FP32,
                sdexport.Profile(batch=sdexport.Range(1, 1, 4), height=SIDE, width=SIDE),
            )
            bundle = folder / target
            sdexport.build_folder(folder / "onnx", bundle, options)
            place = ROOT / "sdexport" / "testing" / archive
            with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
                for file in sorted(bundle.rglob("*")):
                    if file.is_file():
                        entry = zipfile.ZipInfo(file.relative_to(bundle).as_posix(), STAMP)
                        entry.compress_type = zipfile.ZIP_DEFLATED
                        packed.writestr(entry, file.read_bytes())
            print(f"{place.relative_to(ROOT)}: {place.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
