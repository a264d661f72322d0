"""Rows in files, read block by block.

files      a file as numbered blocks: row groups, record batches, ranges of rows
opening    the files of a folder or pattern, compared and read once
store      rows by number, with a cache and a thread that reads ahead
order      shuffled blocks, consecutive batches
selection  a sorted subset of the rows in one bit each
"""
