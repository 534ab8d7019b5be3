"""LaTo: the method. A library that knows no Ray, no MLflow and no job."""
