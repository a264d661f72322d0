"""Contracts that anybody's model, guide or estimator can be tested against."""
