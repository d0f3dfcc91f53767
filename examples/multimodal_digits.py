"""Spoken and written digits: which modality does a model listen to, and does it help to push the other one?

    COUNTERPOISE_DATA=FOLDER python examples/multimodal_digits.py

FOLDER holds fsdd/fsdd.zip, recordings ``recordings/<digit>_<speaker>_<index>.wav`` of the Free Spoken Digit Dataset, and
mnist/MNIST/raw/*-ubyte.gz. Each recording is paired with an image of the same digit; recordings 0 to 4 of each speaker test, with images
of MNIST's test set. The image is blurred to 7 x 7 pixels, so that neither modality suffices.

A small convolutional encoder for each modality and a linear head on both, in a plain loop. What differs between the rows of the table:
whether each modality is charged for its own prediction (ARLLoss), and with which factor its encoder's gradient is multiplied
(AsymmetricGradient). What to look at: accuracy of both together and of each alone, the weight the encoders got, and whether the difference
to the rows above is larger than that between seeds. All rows have one learning rate; in a study of your own, tune it for each of them.
``--quick`` is one short run, to see that it works.
"""

import gzip
import io
import os
import sys
import time
import wave
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from counterpoise.diagnostics import modality_statistics
from counterpoise.gradients import AsymmetricGradient
from counterpoise.losses import ARLLoss, zero_out_unimodal

FOLDER = Path(os.environ.get("COUNTERPOISE_DATA", "."))
SPOKEN, WRITTEN = FOLDER / "fsdd" / "fsdd.zip", FOLDER / "mnist" / "MNIST" / "raw"
BATCH, RATE, GAMMA = 32, 0.01, 4.0
# Rows of the table: factors of the encoders' gradients, and whether there are unimodal losses.
ARMS = {
    "one loss": ("off", False),
    "OGM": ("ogm", False),
    "OGM-GE": ("ogm-ge", False),
    "unimodal losses": ("off", True),
    "+ uniform factors": ("uniform", True),
    "+ ARL": ("arl", True),
    "+ ARL inverted": ("inverse", True),
}


def spectrogram(sound):
    """(16, 32): log energy in bands of up to 4 kHz, in 32 parts of the recording."""
    window = torch.hann_window(256)
    energy = torch.stft(sound, 256, 64, window=window, center=True, pad_mode="constant", return_complex=True).abs().square()
    return torch.log(nn.functional.adaptive_avg_pool2d(energy[None, 1:], (16, 32))[0] + 1e-3)


def read_spoken():
    """For training and for testing: spectrograms (n, 1, 16, 32) and digits (n,)."""
    if not SPOKEN.is_file():
        sys.exit(f"{SPOKEN} is not there: set COUNTERPOISE_DATA to a folder with fsdd/fsdd.zip (see the top of this file)")
    parts = {True: ([], []), False: ([], [])}
    with zipfile.ZipFile(SPOKEN) as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".wav")):
            digit, _, index = Path(name).stem.split("_")
            with wave.open(io.BytesIO(archive.read(name))) as recording:
                samples = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
            sounds, digits = parts[int(index) >= 5]
            sounds.append(spectrogram(torch.from_numpy(samples.astype(np.float32) / 32768)))
            digits.append(int(digit))
    (train, y), (test, y_test) = [(torch.stack(sounds)[:, None], torch.tensor(digits)) for sounds, digits in parts.values()]
    mean, sd = train.mean(), train.std()
    return ((train - mean) / sd, y), ((test - mean) / sd, y_test)


def read_written(part):
    """Images (n, 1, 7, 7), blurred, and digits (n,)."""
    content = []
    for name, header in ((f"{part}-images-idx3-ubyte.gz", 16), (f"{part}-labels-idx1-ubyte.gz", 8)):
        path = WRITTEN / name
        if not path.is_file():
            sys.exit(f"{path} is not there: set COUNTERPOISE_DATA to a folder with mnist/MNIST/raw (see the top of this file)")
        content.append(torch.frombuffer(bytearray(gzip.decompress(path.read_bytes())), dtype=torch.uint8, offset=header))
    pixels, labels = content
    small = nn.functional.avg_pool2d(pixels.view(-1, 1, 28, 28)[:10_000].float() / 255, 4)
    return (small - small.mean()) / small.std(), labels[:10_000].long()


def with_images(sounds, digits, images, labels, generator):
    """Each recording with an image of its digit."""
    chosen = torch.empty_like(digits)
    for digit in range(10):
        rows, candidates = (digits == digit).nonzero()[:, 0], (labels == digit).nonzero()[:, 0]
        chosen[rows] = candidates[torch.randperm(len(candidates), generator=generator)[: len(rows)]]
    return [images[chosen], sounds], digits


class Encoder(nn.Sequential):
    """Pictures (n, 1, ...) to features (n, 32)."""

    def __init__(self, strides):
        layers, width = [], 1
        for wider, stride in zip((16, 32), strides, strict=True):
            layers += [nn.Conv2d(width, wider, 3, stride=stride, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
            width = wider
        super().__init__(*layers, nn.AdaptiveAvgPool2d((2, 4)), nn.Flatten(), nn.Linear(32 * 8, 32), nn.ReLU())


def train(arm, inputs, target, epochs, seed):
    mode, unimodal_losses = ARMS[arm]
    torch.manual_seed(seed)
    encoders = nn.ModuleDict({"image": Encoder((1, 1)), "sound": Encoder((2, 2))})
    head = nn.Linear(64, 10)
    steps = epochs * -(-len(target) // BATCH)
    asymmetric = AsymmetricGradient(2, mode, generator=torch.Generator().manual_seed(seed), warmup_steps=steps // 10)
    criterion = ARLLoss(GAMMA, warmup_steps=steps // 10) if unimodal_losses else None
    optimizer = torch.optim.SGD([*encoders.parameters(), *head.parameters()], lr=RATE, momentum=0.9, weight_decay=1e-4)
    weights = []
    for _ in range(epochs):
        for rows in torch.randperm(len(target)).split(BATCH):
            features = asymmetric(*(encoder(x[rows]) for encoder, x in zip(encoders.values(), inputs, strict=True)))
            fused, unimodal = head(torch.cat(features, dim=1)), zero_out_unimodal(head, features)
            weights.append(asymmetric.update(unimodal, target[rows]))
            loss = criterion(fused, unimodal, target[rows]) if criterion else nn.functional.cross_entropy(fused, target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return encoders.eval(), head, torch.stack(weights[len(weights) // 2 :]).mean(dim=0)


@torch.no_grad()
def predictions(encoders, head, inputs):
    """Logits of both modalities together, and of each alone."""
    features = [encoder(x) for encoder, x in zip(encoders.values(), inputs, strict=True)]
    return head(torch.cat(features, dim=1)), dict(zip(encoders, zero_out_unimodal(head, features), strict=True))


if __name__ == "__main__":
    quick = "--quick" in sys.argv[1:]
    seeds, epochs = (range(1), 1) if quick else (range(3), 6)
    spoken, spoken_test = read_spoken()
    written, written_test = read_written("train"), read_written("t10k")
    test_inputs, test_target = with_images(*spoken_test, *written_test, torch.Generator().manual_seed(0))
    print(f"{len(spoken[1])} pairs of image and recording to train on, {len(test_target)} to test on; mean over {len(seeds)} seeds\n")
    print(f"{'':18s} {'both':>6s} {'image':>6s} {'sound':>6s}   {'weights':>11s} {'seconds':>8s}   both, minus 'unimodal losses', by seed")
    found = {}
    for arm in sorted(ARMS, key=lambda arm: arm != "unimodal losses"):
        accuracies, weights, started = [], [], time.process_time()
        for seed in seeds:
            inputs, target = with_images(*spoken, *written, torch.Generator().manual_seed(seed))
            encoders, head, weight = train(arm, inputs, target, epochs, seed)
            fused, alone = predictions(encoders, head, test_inputs)
            accuracies.append([float((s.argmax(dim=1) == test_target).float().mean()) for s in (fused, *alone.values())])
            weights.append(weight)
        found[arm] = np.array(accuracies)
        both, image, sound = found[arm].mean(axis=0)
        mean = torch.stack(weights).mean(dim=0)
        k = " ".join(f"{w:.2f}" for w in mean) if mean.any() else "-"
        gaps = "" if arm == "unimodal losses" else " ".join(f"{d:+.3f}" for d in found[arm][:, 0] - found["unimodal losses"][:, 0])
        print(f"{arm:18s} {both:6.3f} {image:6.3f} {sound:6.3f}   {k:>11s} {time.process_time() - started:8.1f}   {gaps}", flush=True)
    asymmetry = found["+ ARL"][:, 0] - found["+ ARL inverted"][:, 0]
    print(f"\nARL minus its weights turned round: {asymmetry.mean():+.3f}, better in {(asymmetry > 0).sum()} of {len(asymmetry)} seeds.")
    print(f"\nThe last net ({arm}), on what it has not seen:\n{modality_statistics(alone, target=test_target).summary()}")
