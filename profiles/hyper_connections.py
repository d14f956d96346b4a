"""Manifold-constrained hyper-connections (mHC): several residual streams in place of one, mixed round every block.

Before a block a weighted sum of the streams becomes its input; after it the streams are mixed with each other, by a
matrix that is doubly stochastic after some Sinkhorn steps, and each gets a share of the block's output. All these
weights come from the streams of the token by one product. Before the output head a last weighted sum makes one stream.

Symbols: n streams, h hidden_size. A token has n weights in, n out and n x n between streams.

Source:
    mHC, arXiv:2512.24880; DeepSeek-V4 technical report, section 2.2, and ``hc_pre``, ``hc_post`` and ``hc_head`` of its
    ``inference/model.py``; transformers, ``models/deepseek_v4``.
"""

from dataclasses import dataclass

from profiles.errors import SpecError

_MOST_STREAMS = 64
_MOST_STEPS = 1024
BLOCKS = 2  # of a layer: attention and MLP
_SCALES = 3  # of weights in, out and between


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperConnections:
    """The residual streams of a model.

    Attributes:
        streams: Residual streams (n, ``hc_mult``).
        sinkhorn_steps: Normalisations of rows and columns that make the matrix between streams doubly stochastic
            (``hc_sinkhorn_iters``); they run in registers and take no time here.
    """

    streams: int
    sinkhorn_steps: int

    @property
    def weights(self) -> int:
        """Weights of one token and block: in, out and between streams.

        Example:
            >>> HyperConnections(streams=4, sinkhorn_steps=20).weights
            24
        """
        return (2 + self.streams) * self.streams


def connection_parameters(connections: HyperConnections, hidden_size: int) -> int:
    """Parameters of one layer: for either block a product from all streams, its biases and three scales."""
    each = connections.weights * (connections.streams * hidden_size + 1) + _SCALES
    return BLOCKS * each


def closing_parameters(connections: HyperConnections, hidden_size: int) -> int:
    """Parameters of the sum before the output head: a product from all streams to a weight of each, biases, a scale."""
    return connections.streams * (connections.streams * hidden_size + 1) + 1


def check_connections(connections: HyperConnections, *, parallel: bool, halves: bool) -> None:
    """Refuse numbers of streams that no model has, and blocks that they are not priced round.

    Args:
        connections: The streams.
        parallel: Attention and MLP read the same input.
        halves: A layer is a mixer or an MLP alone.

    Raises:
        SpecError: With the field, the value and what would do.
    """
    for name, least, most in (("streams", 2, _MOST_STREAMS), ("sinkhorn_steps", 0, _MOST_STEPS)):
        value = getattr(connections, name)
        if not least <= value <= most:
            problem = f"must be between {least} and {most}; got {value}"
            raise SpecError(f"model.hyper_connections.{name}", problem, "leave hyper_connections out for one stream")
    if parallel or halves:
        problem = "are priced round attention and an MLP that follow each other only"
        raise SpecError("model.hyper_connections", problem, "leave them out")
