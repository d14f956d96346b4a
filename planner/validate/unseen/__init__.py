"""Published runs that no fit has read, in rounds: priced blind, and again today."""
