"""The toy method's evaluator."""

import numpy as np


def score(cfg, rows):
    del cfg
    return {"error": float(np.mean(np.abs(rows["pose"] - rows["true_pose"]))), "count": len(rows["pose"])}


def summarize(scores):
    return {"error": scores["error"]}
