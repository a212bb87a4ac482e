"""Data validation: expectations, suites and their report. Imports neither Prefect nor MLflow."""

import os

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # Great Expectations reads it when it is imported
