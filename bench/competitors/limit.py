"""
The machine's limit, taking turns with the competitors: in each it computes nothing but products of matrices.

    limit.py CONFIG_JSON DEVICE PRECISION…
"""

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent)]

from flops import Shape
from gemm import quickest, sustained


def main() -> None:
    config, device, *precisions = sys.argv[1:]
    shape = Shape.read(json.loads(Path(config).read_text()))
    best = {precision: quickest(device, precision, shape.matrices) for precision in precisions}
    print(json.dumps({precision: str(gemms[0]) for precision, gemms in best.items()}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({precision: sustained(gemms) for precision, gemms in best.items()}), flush=True)


if __name__ == "__main__":
    main()
