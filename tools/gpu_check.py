"""Everything that wants a GPU, in one run of under ten minutes: `python tools/gpu_check.py --out FOLDER`.

It compares fused kernels with their definition, attention backends with a plain fp64 reference and our transformer
with diffusers' on the same weights. It measures kernels against plain torch, torch.compile, Liger and the rate of a
copy, and a training step of both models, eager and compiled. It writes `gpu.json` and `gpu.md` as it goes and fails if
a bound does not hold. `--dry-run` walks through the same code on the CPU in tiny sizes, where times mean nothing.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder
    from tools.gpu.check import main

    sys.exit(main(sys.argv[1:]))
