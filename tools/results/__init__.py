"""The results page: models x data sets x seeds, trained and measured by one command.

`python -m tools.results --help`. Every (data set, model, seed) is a cell; a finished cell is one
JSON file, so the work can be stopped and taken up at any time.
"""
