"""Tests of `alp.policy` against an independent reading of the method specification."""
