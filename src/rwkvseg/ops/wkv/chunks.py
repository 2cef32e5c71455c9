"""How the linear-time forms cut a sequence: T tokens into n chunks of L, the last one padded."""

from math import isqrt


def chunk_length(num_tokens: int) -> int:
    """Return L near 0.7 sqrt(T), moved a little to where the padding is least.

    The work in one chunk is a loop over L tokens (5 operations each) and the work between chunks a loop over
    T / L (1 operation each), so the loops are short together and each operation covers many chunks at once.

    Example:
        >>> [chunk_length(t) for t in (1, 196, 784, 262144)]
        [1, 9, 16, 350]
    """
    aim = max(1, round(0.7 * isqrt(num_tokens)))
    near = range(max(1, aim - aim // 4), aim + aim // 4 + 1)
    return min(near, key=lambda length: (-num_tokens % length, abs(length - aim)))
