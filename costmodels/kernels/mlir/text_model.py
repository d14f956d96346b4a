"""Sequence models over MLIR tokens after Das & Mannarswamy (arXiv:2302.11405), as a baseline.

Their best model embeds the tokens, runs a stack of one-dimensional convolutions with max-pooling and ends in
fully connected layers; the others average the embeddings, or read them with an LSTM. The paper predicts
bounded quantities of one device; here the target is the logarithm of a time, and the fully connected layers
also see the device. Layer sizes are ours: small enough for a minute on one core.

Needs PyTorch (extra ``neural``). No weights are shipped; docs/text-models.md says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.mlir.tokens import MOST_TOKENS

FloatArray = NDArray[np.float64]

_WIDTH = 64
_BATCH = 64
_LEARNING_RATE = 2e-3
_PADDING, _UNKNOWN = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """A trained network with its vocabulary and the scales of its inputs."""

    network: Any
    vocabulary: dict[str, int]
    mean: FloatArray
    scale: FloatArray
    target_mean: float
    target_scale: float

    def predict(self, texts: Sequence[Sequence[str]], device: FloatArray) -> FloatArray:
        """(N,) predicted targets of N token sequences; ``device`` is (N, F)."""
        import torch

        self.network.eval()
        with torch.no_grad():
            found = self.network(
                torch.from_numpy(_encode(texts, self.vocabulary)),
                torch.from_numpy(((device - self.mean) / self.scale).astype(np.float32)),
            )
        return np.asarray(found.numpy(), dtype=float) * self.target_scale + self.target_mean


def train(
    texts: Sequence[Sequence[str]], device: FloatArray, target: FloatArray, *, kind: str, epochs: int, seed: int
) -> TextModel:
    """Fit a network; the same inputs and seed give the same network on the same machine.

    Args:
        texts: N token sequences.
        device: (N, F) what is known of the device, in logarithms.
        target: (N,) what to predict.
        kind: ``conv``, ``bag`` or ``lstm``.
        epochs: Passes over the data.
        seed: Of initial weights and order.
    """
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    vocabulary = {word: row + 2 for row, word in enumerate(sorted({word for text in texts for word in text}))}
    mean, scale = device.mean(axis=0), np.maximum(device.std(axis=0), 1e-9)
    target_mean, target_scale = float(target.mean()), float(max(target.std(), 1e-9))
    network = _network(kind, len(vocabulary) + 2, device.shape[1])
    codes = torch.from_numpy(_encode(texts, vocabulary))
    facts = torch.from_numpy(((device - mean) / scale).astype(np.float32))
    wanted = torch.from_numpy(((target - target_mean) / target_scale).astype(np.float32))
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    steps = epochs * -(-len(texts) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_LEARNING_RATE, total_steps=steps)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(texts))
        for rows in torch.split(order, _BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.smooth_l1_loss(network(codes[rows], facts[rows]), wanted[rows], beta=0.1)
            loss.backward()
            optimizer.step()
            schedule.step()
    return TextModel(
        network=network, vocabulary=vocabulary, mean=mean, scale=scale,
        target_mean=target_mean, target_scale=target_scale,
    )  # fmt: skip


def _encode(texts: Sequence[Sequence[str]], vocabulary: dict[str, int]) -> NDArray[np.int64]:
    """(N, MOST_TOKENS) word numbers, padded behind."""
    codes = np.full((len(texts), MOST_TOKENS), _PADDING, dtype=np.int64)
    for row, text in enumerate(texts):
        codes[row, : len(text)] = [vocabulary.get(word, _UNKNOWN) for word in text[:MOST_TOKENS]]
    return codes


def _network(kind: str, words: int, facts: int) -> Any:
    import torch
    from torch import nn

    base: Any = nn.Module

    class Network(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(words, _WIDTH, padding_idx=_PADDING)
            if kind == "conv":
                layers: list[Any] = []
                for _ in range(3):
                    layers += [nn.Conv1d(_WIDTH, _WIDTH, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2)]
                self.encoder = nn.Sequential(*layers)
            elif kind == "lstm":
                self.encoder = nn.LSTM(_WIDTH, _WIDTH, batch_first=True)
            self.head = nn.Sequential(
                nn.Linear(_WIDTH + facts, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
            )

        def forward(self, codes: Any, known: Any) -> Any:
            embedded = self.embedding(codes)
            present = (codes != _PADDING).unsqueeze(2)
            if kind == "conv":
                read = self.encoder(embedded.transpose(1, 2)).amax(dim=2)
            elif kind == "lstm":
                states = self.encoder(embedded)[0]
                last = present.sum(dim=1).clamp(min=1) - 1
                read = states.gather(1, last.unsqueeze(2).expand(-1, 1, _WIDTH)).squeeze(1)
            else:
                read = (embedded * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)
            return self.head(torch.cat((read, known), dim=1)).squeeze(1)

    return Network()
