"""Input of bulk jobs: files of any format as one sequence of rows."""
