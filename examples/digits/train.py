"""Train a small network on real handwritten digits, and report everything an experiment can hold.

The data are the 1,797 scans of 8x8 pixels that scikit-learn ships: nothing is downloaded. A fifth of them is
kept aside for validation; the rest is multiplied by shifting each scan by a pixel, because people do not write
in the middle of the box.
"""

from clearml_client import init_clearml  # before what it records

# isort: split
import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from clearml import Logger, OutputModel, Task
from sklearn.datasets import load_digits
from sklearn.metrics import classification_report, confusion_matrix, log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

DIGITS = [str(digit) for digit in range(10)]
LABELS = {digit: int(digit) for digit in DIGITS}
SIDE = 8
SAMPLES = 8


@dataclass(frozen=True)
class Split:
    """Images as rows of 64 values from 0 to 1, and the digit that each one shows."""

    images: np.ndarray
    labels: np.ndarray


def arguments() -> argparse.Namespace:
    """Read the hyperparameters; ClearML records them and, in a queue, replaces them with the experiment's."""
    parser = argparse.ArgumentParser(description="Train a small network on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=256, help="units in the hidden layer")
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--l2", type=float, default=0.0001, help="weight decay")
    parser.add_argument("--shift", type=int, default=1, help="pixels to shift the training scans by; 0: not at all")
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


def load(shift: int, seed: int) -> tuple[Split, Split]:
    """Return the training and the validation scans; only the training ones are shifted."""
    scans = load_digits()
    train_x, val_x, train_y, val_y = train_test_split(
        scans.images / 16.0, scans.target, test_size=0.2, random_state=seed, stratify=scans.target
    )
    steps = [(dy, dx) for dy in range(-shift, shift + 1) for dx in range(-shift, shift + 1)]
    shifted = np.concatenate([moved(train_x, dy, dx) for dy, dx in steps])
    return (
        Split(shifted.reshape(len(shifted), -1), np.tile(train_y, len(steps))),
        Split(val_x.reshape(len(val_x), -1), val_y),
    )


def moved(images: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Shift images by whole pixels; what leaves on one side does not come back on the other."""
    pad = max(abs(dy), abs(dx))
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad)))
    return padded[:, pad - dy : pad - dy + SIDE, pad - dx : pad - dx + SIDE]


def train(args: argparse.Namespace, train_set: Split, val_set: Split, logger: Logger) -> MLPClassifier:
    """Fit epoch by epoch, reporting loss and accuracy on both sets after each."""
    model = MLPClassifier(
        hidden_layer_sizes=(args.hidden,),
        learning_rate_init=args.learning_rate,
        batch_size=args.batch_size,
        alpha=args.l2,
        random_state=args.seed,
    )
    for epoch in range(1, args.epochs + 1):
        started = time.monotonic()
        model.partial_fit(train_set.images, train_set.labels, classes=np.arange(10))
        line = f"epoch {epoch}/{args.epochs}"
        for name, split in (("train", train_set), ("validation", val_set)):
            loss, accuracy = evaluate(model, split)
            logger.report_scalar("loss", name, value=loss, iteration=epoch)
            logger.report_scalar("accuracy", name, value=accuracy, iteration=epoch)
            line += f"  {name} loss {loss:.4f} accuracy {accuracy:.4f}"
        print(f"{line}  ({time.monotonic() - started:.2f} s)", flush=True)
    return model


def evaluate(model: MLPClassifier, split: Split) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy."""
    odds = model.predict_proba(split.images)
    return float(log_loss(split.labels, odds)), float(np.mean(odds.argmax(axis=1) == split.labels))


def report(model: MLPClassifier, val_set: Split, epoch: int, task: Task, logger: Logger) -> float:
    """Report what the finished model does on the validation scans, and return its accuracy."""
    odds = model.predict_proba(val_set.images)
    guesses = odds.argmax(axis=1)
    logger.report_confusion_matrix(
        "confusion matrix",
        "validation",
        matrix=confusion_matrix(val_set.labels, guesses, labels=range(10)),
        iteration=epoch,
        xaxis="predicted",
        yaxis="actual",
        xlabels=DIGITS,
        ylabels=DIGITS,
    )
    # The scans that the model finds hardest: first those it gets wrong.
    hardest = np.argsort(odds[np.arange(len(guesses)), val_set.labels])[:SAMPLES]
    for rank, index in enumerate(hardest, start=1):
        logger.report_image(
            "hardest digits",
            f"{rank}: a {val_set.labels[index]}, read as {guesses[index]}",
            iteration=epoch,
            image=enlarged(val_set.images[index]),
        )
    task.upload_artifact(
        "classification report",
        classification_report(val_set.labels, guesses, target_names=DIGITS, output_dict=True, zero_division=0),
    )
    return float(np.mean(guesses == val_set.labels))


def enlarged(image: np.ndarray, factor: int = 16) -> np.ndarray:
    """Make an 8x8 scan large enough to look at: black ink on white."""
    ink = 255 - (image.reshape(SIDE, SIDE) * 255).astype(np.uint8)
    return np.kron(ink, np.ones((factor, factor), dtype=np.uint8))


def save(model: MLPClassifier, task: Task) -> None:
    """Keep the weights as plain arrays (no pickle): as the experiment's model, and as an artifact."""
    arrays = {}
    for layer, (weights, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        arrays[f"weights_{layer}"] = weights
        arrays[f"bias_{layer}"] = bias
    with TemporaryDirectory() as folder:
        path = Path(folder, "digits.npz")
        np.savez(path, **arrays)
        output = OutputModel(task=task, name="digits", framework="ScikitLearn", label_enumeration=LABELS)
        output.update_weights(weights_filename=str(path), auto_delete_file=False, async_enable=False)
        task.upload_artifact("weights", artifact_object=str(path), wait_on_upload=True)


def main() -> None:
    """Train, report, save."""
    task = init_clearml("digits", project="examples/training", tags=["example"])
    logger = task.get_logger()
    args = arguments()
    train_set, val_set = load(args.shift, args.seed)
    print(f"{len(train_set.labels)} training scans, {len(val_set.labels)} validation scans", flush=True)
    with threadpool_limits(limits=1):  # the network is small: more threads would only wait for each other
        model = train(args, train_set, val_set, logger)
    accuracy = report(model, val_set, args.epochs, task, logger)
    save(model, task)
    logger.report_single_value("accuracy", accuracy)
    print(f"final validation accuracy: {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
