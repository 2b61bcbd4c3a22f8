"""The pictures of a report, each a function from plain data to a matplotlib figure (extra ``report``)."""
