"""Finds a person's landmarks in pictures; runs in the pose model's own environment.

Standard input: for each picture a header of three little-endian uint32 (width, height, mirror: 0 or 1) and
width x height x 3 bytes of RGB. Standard output: for each picture a line of JSON, null or 33 triples x, y,
visibility with x and y in [0, 1] of the picture (as it was given, mirrored or not) in MediaPipe's order.
Needs MediaPipe and NumPy only.
"""

import json
import os
import struct
import sys

import numpy as np

# A body seen in a mirror has its left where the right is.
LEFT_RIGHT = [0, 4, 5, 6, 1, 2, 3, 8, 7, 10, 9]
LEFT_RIGHT += [i + 1 if i % 2 else i - 1 for i in range(11, 33)]


def main() -> None:
    from mediapipe.python.solutions.pose import Pose

    pictures, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    with Pose(static_image_mode=True, model_complexity=1) as model:
        while header := pictures.read(12):
            width, height, mirror = struct.unpack("<3I", header)
            picture = np.frombuffer(pictures.read(width * height * 3), np.uint8)
            picture = picture.reshape(height, width, 3)
            if mirror:
                picture = np.ascontiguousarray(picture[:, ::-1])
            found = model.process(picture).pose_landmarks
            answers.write(json.dumps(None if found is None else points(found.landmark, mirror)) + "\n")
            answers.flush()


def points(landmarks, mirror: int) -> list[list[float]]:
    """Returns the 33 triples of the picture that was not mirrored."""
    triples = [[float(p.x), float(p.y), float(p.visibility)] for p in landmarks]
    if mirror:
        triples = [[1 - triples[i][0], *triples[i][1:]] for i in LEFT_RIGHT]
    return triples


if __name__ == "__main__":
    main()
