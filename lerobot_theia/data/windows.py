"""Temporal windows: which frames a sample's deltas reach, computed for a whole batch."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EpisodeRows:
    """Where the selected episodes lie: absolute frame indices, and rows of the loaded columns."""

    episode: np.ndarray
    """(rows,) int64 position in the arrays below, for each row."""
    start: np.ndarray
    """(episodes,) first absolute frame index."""
    stop: np.ndarray
    """(episodes,) one past the last."""
    row: np.ndarray
    """(episodes,) row of `start`."""

    @classmethod
    def from_columns(
        cls, episode_index: np.ndarray, frames_from: np.ndarray, frames_to: np.ndarray
    ) -> "EpisodeRows":
        """`episode_index` (rows,) is that of the loaded rows, in which an episode's frames stand together and whole;
        `frames_from`, `frames_to` are those of every episode of the dataset.

        Raises ValueError when a loaded episode is not whole.
        """
        first = np.flatnonzero(np.diff(episode_index, prepend=-1))
        episodes = episode_index[first]
        lengths = np.diff(first, append=len(episode_index))
        expected = frames_to[episodes] - frames_from[episodes]
        if len(np.unique(episodes)) != len(episodes) or (lengths != expected).any():
            raise ValueError(
                f"the loaded rows hold {len(episode_index)} frames in {len(episodes)} runs, but meta/episodes gives "
                f"episodes {episodes[:8].tolist()}… {expected[:8].tolist()}… frames: the data files are not whole"
            )
        position = np.repeat(np.arange(len(episodes)), lengths)
        return cls(position, frames_from[episodes], frames_to[episodes], first)

    def window(
        self, rows: np.ndarray, absolute: np.ndarray, deltas: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows (B, S) of the frames at `deltas` (S,) from samples `rows` (B,), and (B, S) whether each lies
        outside its episode; there the nearest frame of the episode stands in, as in LeRobot.
        """
        episode = self.episode[rows]
        start, stop = self.start[episode, None], self.stop[episode, None]
        wanted = absolute[:, None] + deltas[None, :]
        outside = (wanted < start) | (wanted >= stop)
        return wanted.clip(start, stop - 1) - start + self.row[episode, None], outside
