"""One folder a kind of evidence.

``observe`` asks the engine, ``check`` judges and is pure, ``record`` says what is stored, ``section`` makes the rows of reports,
and ``probes`` run in a worker.
"""
