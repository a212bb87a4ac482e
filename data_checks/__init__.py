"""What data must satisfy: expectations, suites and their report. Knows no Prefect and no MLflow."""

import os

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # Great Expectations reads it when it is imported
