"""Which remedy helps in a training loop of your own? Here: a plain PyTorch loop that tells the digit 8 from the nine others.

    python examples/own_training_loop.py

You keep the loop. For every remedy, seed and fold the study calls your function with a *kit*, which says which rows to use and hands out
the parts that the remedy under test may change: the sampler, the loss, the optimizer. What a remedy does not touch comes back as the
usual thing, so one loop serves them all. The study does the rest: folds, thresholds, intervals, verdicts, a page to read.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from counterpoise.datasets import load
from counterpoise.studies import Study

EPOCHS = 8

# Your data, all of it. 1,797 images of 8 x 8 pixels; the target says "8" or "other".
digits = load("digits8")
pixels = torch.tensor(digits.frame.drop(digits.target).to_numpy(), dtype=torch.float32) / 16
labels = digits.frame[digits.target].to_list()


def train(kit, seed):
    """Train one network on ``kit.train_index``; return its logits for ``kit.valid_index`` and ``kit.test_index``."""
    torch.manual_seed(seed)  # so that the same study gives the same numbers again
    targets = torch.from_numpy(kit.y)  # 0 and 1; 1 is the rarer class
    model = nn.Sequential(nn.Linear(pixels.shape[1], 32), nn.ReLU(), nn.Linear(32, 1))

    # Three lines that would read RandomSampler(...), BCEWithLogitsLoss() and Adam(...) without a study.
    sampler = kit.sampler()  # draws row numbers of the whole data set, those in kit.train_index only
    criterion = kit.loss("sigmoid")  # one logit per row; kit.loss() takes one logit per class
    optimizer = kit.optimizer(model.parameters(), lr=0.01)

    loader = DataLoader(TensorDataset(pixels, targets), batch_size=128, sampler=sampler)
    for _ in range(EPOCHS):
        for batch, target in loader:
            loss = criterion(model(batch)[:, 0], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    # The validation rows set the decision threshold, the baseline's too; the test rows are what the verdicts are about.
    with torch.no_grad():
        return {part: model(pixels[rows])[:, 0] for part, rows in (("valid", kit.valid_index), ("test", kit.test_index))}


if __name__ == "__main__":
    study = Study.from_training(train, labels, ["weights", "over", "focal"], seeds=2, folds=3, name="digits8")
    print(study.recommendation.summary())
    for question in study.questions:
        print(f"\n{question}, {study.metrics[question]}:")
        for verdict in study.verdicts(question):
            print(f"  {verdict.arm:12s} {verdict.sentence()}")
    # With out="runs/digits8" the page (report.html) stays, and the same call goes on where it was interrupted.
