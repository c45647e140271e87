"""
The evaluation: how well, how fast and in how many bytes a collection with known answers is searched.

Everything is measured through the real path: COPY into a table that embeds itself, indexes as `nv_embed.create_index_sql` makes them, and `nv_search`
for every query. What has nothing to do with vectors (BM25, Postgres full text) answers the same queries beside it.
"""
