"""Which rows to train on, so that no concept floods a set and no rare one is lost: clusters, caps and mixes.

`clusters` groups vectors level by level (needs faiss: install krea-data[balance]), `review` names the groups and says
which of them somebody should look at, `caps` thins out frequent concepts, `mix` shares a stage out over domains.
"""

__all__: list[str] = []
