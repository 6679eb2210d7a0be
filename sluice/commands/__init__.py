"""The commands of `sluice`, a module for each group: words in, a sentence and an exit code out."""
