"""A server of Google Cloud Storage's JSON API, in memory, for tests.

Clients are pointed at it by environment variables, and nothing in them is
replaced: gcsfs, google-cloud-storage and tensorstore send the requests that
they send to Google. What the server knows is what these clients and the
library orbax use; anything else is answered with 501, so that no test passes
on a guess. `faults` makes it fail in the ways that the service fails.

bucket.py    objects, generations, preconditions, listings, uploads
api.py       the table of requests, and the right that each one needs
faults.py    errors, delays and cut connections for chosen requests
server.py    HTTP
"""
