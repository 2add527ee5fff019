"""Loads a trained model and predicts images, in plain PyTorch.

uv run examples/load_and_predict.py runs/photos new/1.jpg new/2.png
"""

import sys

from pipeline import load_model


def main(run: str, *images: str) -> None:
    """Prints the two likeliest classes of each image."""
    model = load_model(run)
    for image, likeliest in zip(images, model.predict(images).top(2), strict=True):
        print(f"{image}: " + ", ".join(f"{name} {probability:.0%}" for name, probability in likeliest))


if __name__ == "__main__":
    main(*sys.argv[1:])
