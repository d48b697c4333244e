"""The OpenAPI description's examples: one experiment on NCT-CRC-HE, told through."""

from typing import Any

DATASET_REQUESTS: dict[str, Any] = {
    "folders": {
        "summary": "Class folders: a train set for the pool, a test set, 1,000 labelled drawn from the pool",
        "value": {
            "name": "nct",
            "sources": [
                {"kind": "folder", "path": "/data/NCT-CRC-HE-100K"},
                {"kind": "folder", "path": "/data/CRC-VAL-HE-7K", "role": "test"},
            ],
            "draws": [{"count": 1000}],
        },
    },
    "manifest": {
        "summary": "A manifest with its own names of columns; patients as groups",
        "value": {
            "name": "idc50",
            "image_size": 48,
            "sources": [
                {
                    "kind": "manifest",
                    "path": "/data/idc50/manifest.csv",
                    "columns": {"role": "split", "group": "patient"},
                }
            ],
        },
    },
}

EXPERIMENT_REQUESTS: dict[str, Any] = {
    "paper": {
        "summary": "The paper's uncertainty arm",
        "value": {"name": "nct-entropy", "dataset": "nct", "arm": "entropy", "positive_class": "TUM"},
    },
    "small": {
        "summary": "Coreset, a few short rounds",
        "value": {
            "name": "idc50-k-center",
            "dataset": "idc50",
            "arm": "k_center",
            "positive_class": "idc",
            "budget": 100,
            "rounds": 5,
            "candidates": 2000,
            "simclr": {"epochs": 4, "learning_rate": 0.001},
        },
    },
}

DATASET: dict[str, Any] = {
    "id": "0006512a3b4c5d9f0e1d2c3b",
    "name": "nct",
    "status": "ready",
    "classes": ["ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"],
    "counts": {"pool": {"TUM": 14174}, "labelled": {"TUM": 143}, "test": {"TUM": 1233}},
    "samples": 107180,
    "image_size": 224,
    "report": {"read": 107180, "packed": 107180, "skipped": [], "groups": "none (splits do not respect patients)"},
    "progress": {},
    "error": None,
    "spec": DATASET_REQUESTS["folders"]["value"],
    "created_at": "2026-01-12T09:30:00Z",
}

ROUND: dict[str, Any] = {
    "number": 3,
    "status": "training",
    "attempt": 1,
    "losses": 0,
    "failures": 0,
    "owner": "trainer-1",
    "samples": 4000,
    "visits": 600000,
    "seconds": {},
    "metrics": {},
    "report": {},
    "progress": {"phase": "train", "epoch": 12, "epochs": 100, "step": 7, "steps": 32, "images_per_second": 1450.0},
    "error": None,
    "created_at": "2026-01-12T11:02:00Z",
    "ended_at": None,
}

EXPERIMENT: dict[str, Any] = {
    "id": "0006512a3b4d00aa11bb22cc",
    "name": "nct-entropy",
    "dataset": "nct",
    "arm": "entropy",
    "status": "running",
    "error": None,
    "rounds_total": 20,
    "rounds_done": 3,
    "current_round": ROUND,
    "latest": None,
    "spec": EXPERIMENT_REQUESTS["paper"]["value"],
    "created_at": "2026-01-12T10:00:00Z",
    "ended_at": None,
}

SELECTION: dict[str, Any] = {"items": [{"rank": 0, "idx": 40211, "key": "STR/STR-TCGA-A.tif", "score": 0.6931}]}

METRICS: dict[str, Any] = {
    "items": [{"round": 0, "samples": 1000, "visits": 100000, "seconds": 131.5, "f1": 0.71, "macro_f1": 0.8}],
    "floors": {"colour_histogram": {"f1": 0.55}, "untrained_encoder": {"f1": 0.61}},
}

KEY_REQUEST: dict[str, Any] = {"name": "notebook", "scopes": ["run"]}
