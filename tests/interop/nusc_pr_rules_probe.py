"""Run by .venv-interop: NUSC-PR's supervised division in steps like its scripts', by devkit and scikit-learn.

python nusc_pr_rules_probe.py ROOT LOCATION DELTA GAMMA ANSWERS.json

In float32, as there: tokens of the database, of training queries, of the pool that validation is drawn from;
of every query which database frames are within 9 m, and which are beyond 18 m.
"""

import json
import sys

import numpy as np
from nuscenes.nuscenes import NuScenes
from sklearn.neighbors import NearestNeighbors


def main(root: str, location: str, delta: str, gamma: str, answers_path: str) -> None:
    """Divide one location and write the answers."""
    nusc = NuScenes(version="v1.0-trainval", dataroot=root, verbose=False)
    samples = []
    for scene in nusc.scene:
        if nusc.get("log", scene["log_token"])["location"] == location:
            token = scene["first_sample_token"]
            while token:
                samples.append(nusc.get("sample", token))
                token = samples[-1]["next"]
    poses = [
        nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
        for sample in samples
    ]
    xy = np.array([pose["translation"][:2] for pose in poses], np.float32)
    time = np.array([sample["timestamp"] for sample in samples], np.float32)
    database = [0]
    for number in range(1, len(xy)):
        neighbours = NearestNeighbors(n_neighbors=1).fit(xy[database])
        if neighbours.kneighbors(xy[number : number + 1])[0] > float(delta):
            database.append(number)
    age = (time - time.min()) / (3600 * 24 * 1e6)
    others = set(range(len(xy))) - set(database)
    queries = sorted(others)
    neighbours = NearestNeighbors().fit(xy[database])
    near, not_far = (
        neighbours.radius_neighbors(xy[queries], radius=radius, return_distance=False) for radius in (9, 18)
    )
    token = [sample["token"] for sample in samples]
    answers = {
        "database": [token[i] for i in database],
        "train": [token[i] for i in queries if age[i] < float(gamma)],
        "pool": [token[i] for i in queries if age[i] >= float(gamma)],
        "near": {
            token[query]: [token[database[i]] for i in found]
            for query, found in zip(queries, near, strict=True)
        },
        "far": {
            token[query]: [token[i] for k, i in enumerate(database) if k not in set(found)]
            for query, found in zip(queries, not_far, strict=True)
        },
    }
    with open(answers_path, "w") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
