"""The explorer: pages about a log for people, made on the server and complete without script.

Everything here is public already and can be had from the API, with its proofs; a page only makes it readable. So it
claims what ``docs/what-an-answer-claims.md`` says and no more, and nothing that names an actor may be kept by a cache:
it would outlive the actor's erasure.
"""
