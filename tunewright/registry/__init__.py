"""MLflow: tracking, registered versions, their alias and its history."""
