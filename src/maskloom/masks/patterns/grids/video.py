"""Masks for the heads of video models: a prompt, and then frames of equal size."""

from torch import Tensor

from maskloom.core.checks import count, positive
from maskloom.core.symbols import known
from maskloom.masks.algebra import Mask, mask_dataclass
from maskloom.masks.lookups import among_first

__all__ = ["spatial", "temporal"]


class _Frames(Mask):
    """A prompt that sees everything and is seen by everything, and then frames."""

    frames: int | Tensor
    frame_size: int | Tensor
    width: int | Tensor
    prompt: int | Tensor

    def _holds(self, idx: Tensor) -> Tensor:
        return among_first(idx, self.prompt + self.frames * self.frame_size)


@mask_dataclass
class Spatial(_Frames):
    """See `spatial`."""

    runs_in_flash = True

    frames: int | Tensor
    frame_size: int | Tensor
    width: int | Tensor
    prompt: int | Tensor
    sink_frames: int | Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        for_all = (q_idx < self.prompt) | (kv_idx < self.prompt + self.sink_frames * self.frame_size)
        return (for_all | _closer(q_idx, kv_idx, self.width)) & self._holds(q_idx) & self._holds(kv_idx)

    def __repr__(self) -> str:
        return (
            f"spatial({self.frames}, {self.frame_size}, width={self.width}, prompt={self.prompt}, "
            f"sink_frames={self.sink_frames})"
        )


@mask_dataclass
class Temporal(_Frames):
    """See `temporal`."""

    frames: int | Tensor
    frame_size: int | Tensor
    width: int | Tensor
    prompt: int | Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        for_all = (q_idx < self.prompt) | (kv_idx < self.prompt)
        q_place, kv_place = (q_idx - self.prompt) % self.frame_size, (kv_idx - self.prompt) % self.frame_size
        return (for_all | _closer(q_place, kv_place, self.width)) & self._holds(q_idx) & self._holds(kv_idx)

    def __repr__(self) -> str:
        return f"temporal({self.frames}, {self.frame_size}, width={self.width}, prompt={self.prompt})"


def spatial(frames: int, frame_size: int, *, width: int, prompt: int = 0, sink_frames: int = 0) -> Spatial:
    """The spatial head of a video model: a token sees the tokens less than ``width`` positions away.

    ::

        spatial(2, 3, width=2, prompt=1)   k0 k1 k2 k3 k4 k5 k6
                                prompt q0   x  x  x  x  x  x  x
                               frame 0 q1   x  x  x
                                       q2   x  x  x  x
                                       q3   x     x  x  x
                               frame 1 q4   x        x  x  x
                                       q5   x           x  x  x
                                       q6   x              x  x

    The sequence is the prompt, which sees everything and is seen by everything, and then the frames. If ``width`` is at
    least the frame size, a token sees its whole frame, and tokens of the neighbouring frames up to the same distance. A
    position after the frames sees nothing.

    Source: Xi et al. 2025 (Sparse VideoGen). There the width is given in frames, and rounded to tiles.

    Args:
        frames: number of frames.
        frame_size: tokens of a frame.
        width: in positions, at least 1; 1 is the token alone.
        prompt: number of tokens before the frames.
        sink_frames: number of first frames that every token sees, at most all frames.

    Raises:
        TypeError: not ints. ValueError: a number that is too small, more sink frames than frames.
    """
    checked, sinks = _checked(frames, frame_size, width, prompt), count("sink_frames", sink_frames)
    if known(sinks > frames):
        raise ValueError(f"sink_frames are some of the {frames} frames; got {sinks}")
    return Spatial(*checked, sinks)


def temporal(frames: int, frame_size: int, *, width: int, prompt: int = 0) -> Temporal:
    """The temporal head of a video model: a token sees, in every frame, the places less than ``width`` from its own.

    ::

        temporal(2, 3, width=1, prompt=1)   k0 k1 k2 k3 k4 k5 k6
                                 prompt q0   x  x  x  x  x  x  x
                                frame 0 q1   x  x        x
                                        q2   x     x        x
                                        q3   x        x        x
                                frame 1 q4   x  x        x
                                        q5   x     x        x
                                        q6   x        x        x

    The sequence is the prompt, which sees everything and is seen by everything, and then the frames. A token's place is
    its number within its frame. A position after the frames sees nothing.

    Source: Xi et al. 2025 (Sparse VideoGen), with windows of whole places as in attention-gym. Their code sorts tokens
    by place (the first tokens of all frames, then all second ones, ...) and takes a window of positions there, which
    may end inside a place. In that order the mask is ``spatial(frame_size, frames, width=n, prompt=...)``. For
    CogVideoX n is ``multiplier * frame_size``, rounded down to a multiple of 128. For Wan it is rounded up, plus 1, and
    every query sees the first ``frame_size`` keys.

    Args:
        frames: number of frames.
        frame_size: tokens of a frame.
        width: in places, at least 1; 1 is the same place in every frame.
        prompt: number of tokens before the frames.

    Raises:
        TypeError: not ints. ValueError: a number that is too small.
    """
    return Temporal(*_checked(frames, frame_size, width, prompt))


def _checked(frames: int, frame_size: int, width: int, prompt: int) -> tuple[int, int, int, int]:
    sizes = positive("frames", frames), positive("frame_size", frame_size)
    return *sizes, positive("width", width), count("prompt", prompt)


def _closer(q: Tensor, kv: Tensor, width: int | Tensor) -> Tensor:
    return (q - kv < width) & (kv - q < width)
