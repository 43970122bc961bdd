"""Mutation testing: is there a test that goes red when a line of the gate is wrong?"""
