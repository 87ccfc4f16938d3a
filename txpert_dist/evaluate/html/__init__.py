"""Reports as one self-contained page: nothing is fetched, names from data are only ever text."""
