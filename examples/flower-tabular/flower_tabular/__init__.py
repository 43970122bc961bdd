"""A logistic regression over local rows and certified synthetic rows."""
